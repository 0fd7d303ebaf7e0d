"""Training: a recipe (checked without importing torch) and one loop that follows it."""

from experiments.training.attacks import attack
from experiments.training.loop import Evaluation, History, evaluate, fit
from experiments.training.recipe import Adversary, Recipe

__all__ = ["Adversary", "Evaluation", "History", "Recipe", "attack", "evaluate", "fit"]
