"""Evaluation of models and predictions on a data set."""
