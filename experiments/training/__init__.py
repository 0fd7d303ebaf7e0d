"""Training: a recipe (checked without importing torch) and one loop that follows it."""

from experiments.training.loop import Evaluation, History, evaluate, fit
from experiments.training.recipe import Recipe

__all__ = ["Evaluation", "History", "Recipe", "evaluate", "fit"]
