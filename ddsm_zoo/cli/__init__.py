"""The shell command ``ddsm-zoo``: parse, call, print. What a command knows how to do lives in the library.

One module for each group of commands; the order of their imports is the order in the help. torch takes seconds to
import: each command imports what it needs, so that help comes at once.
"""

from ddsm_zoo.cli import models, predict, explain, demo, evaluate, check_data, train, recipes, weights, export  # isort: skip
from ddsm_zoo.cli.app import app, main

__all__ = [
    "app",
    "check_data",
    "demo",
    "evaluate",
    "explain",
    "export",
    "main",
    "models",
    "predict",
    "recipes",
    "train",
    "weights",
]
