"""Files, PNG, prefetching, signals, memory, torch.distributed and pictures of masks: one module for each."""
