"""A model in, a file that runs without this package out."""
