"""Runs a method: from a recipe to a run folder with a trained and tested student."""

from tfkd_fast.engine.export import export
from tfkd_fast.engine.learning import learn_policy
from tfkd_fast.engine.loop import Listener
from tfkd_fast.engine.recipe import Recipe, load_recipe, make_recipe, set_override, shipped_recipes
from tfkd_fast.engine.replay import replay_recipe
from tfkd_fast.engine.run import evaluate, read_recipe, resume, train
from tfkd_fast.engine.run_folder import RunFolder
from tfkd_fast.engine.students import Students

__all__ = [
    "Listener",
    "Recipe",
    "RunFolder",
    "Students",
    "evaluate",
    "export",
    "learn_policy",
    "load_recipe",
    "make_recipe",
    "read_recipe",
    "replay_recipe",
    "resume",
    "set_override",
    "shipped_recipes",
    "train",
]
