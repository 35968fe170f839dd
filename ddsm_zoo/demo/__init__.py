"""The page to try models on."""
