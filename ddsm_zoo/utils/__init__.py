"""Files, PNG, prefetching, signals, memory, torch.distributed, registries, pictures of masks: one module for each."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of items that are done and the number of all."""
