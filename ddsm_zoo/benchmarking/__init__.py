"""What `ddsm-zoo benchmark` measures, a suite in each module."""

from ddsm_zoo.benchmarking.figures import Bar, Figures
from ddsm_zoo.benchmarking.growth import benchmark_growth, check_plot, plot_growth
from ddsm_zoo.benchmarking.models import benchmark_models
from ddsm_zoo.benchmarking.operation import benchmark_operation
from ddsm_zoo.benchmarking.precision import benchmark_precision

__all__ = [
    "Bar",
    "Figures",
    "benchmark_growth",
    "benchmark_models",
    "benchmark_operation",
    "benchmark_precision",
    "check_plot",
    "plot_growth",
]
