"""A data set in, scores out."""
