"""Explanations of a model at a pixel, and comparisons of two models' errors."""
