"""Files, PNG, prefetching, signals, memory, torch.distributed, registries and visualization, one module for each."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of items that are done and the number of all."""
