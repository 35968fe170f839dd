"""What `python -m benchmarks.speed` measures, a suite in each module."""

from benchmarks.speed.figures import Bar, Figures
from benchmarks.speed.growth import benchmark_growth, check_plot, plot_growth
from benchmarks.speed.models import benchmark_models
from benchmarks.speed.operation import benchmark_operation
from benchmarks.speed.precision import benchmark_precision

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
