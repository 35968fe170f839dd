"""Explanations of a model at a pixel, and of where two models err."""
