"""Shell command ``ddsm-zoo``: parse arguments, call the library, print results.

There is one module for each group of commands. The order of their imports is the order in the help. Importing torch
takes seconds, so each command imports it only when it runs, and help appears at once.
"""

from ddsm_zoo.cli import models, predict, explain, demo, evaluate, import_data, check_data  # isort: skip
from ddsm_zoo.cli import train, recipes, weights, export  # isort: skip
from ddsm_zoo.cli.app import app, main

__all__ = [
    "app",
    "check_data",
    "demo",
    "evaluate",
    "explain",
    "export",
    "import_data",
    "main",
    "models",
    "predict",
    "recipes",
    "train",
    "weights",
]
