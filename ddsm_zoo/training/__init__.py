"""Training of a model from a recipe and a data set."""
