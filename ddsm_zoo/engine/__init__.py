"""Training and measuring of any (N, 3, H, W) -> (N, K, H, W) network; knows nothing of the zoo."""
