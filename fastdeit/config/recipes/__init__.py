"""Recipes: named starting points for a run, each a function that returns a `Config`.

A docstring has the command, the accuracy to expect with its source, and the hardware. Flags and
`--config` change any field of a recipe; `deit` is the default.
"""

from collections.abc import Callable

from fastdeit.config.recipes.cifar import cifar10, cifar10_teacher
from fastdeit.config.recipes.finetune import digits_48, finetune_384, transfer
from fastdeit.config.recipes.imagenet import deit, deit3, deit3_finetune, deit_paper
from fastdeit.config.recipes.small import (
    digits,
    digits_teacher,
    fashion_mnist,
    fashion_mnist_teacher,
)
from fastdeit.config.schema import Config
from fastdeit.display.text import suggest_near

_ALL = (
    deit,
    deit_paper,
    deit3,
    deit3_finetune,
    finetune_384,
    transfer,
    digits_teacher,
    digits,
    digits_48,
    fashion_mnist_teacher,
    fashion_mnist,
    cifar10_teacher,
    cifar10,
)
RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in _ALL}


def find_recipe(name: str) -> Config:
    """Return a recipe's settings; `-` in its name stands for `_`. Raises ValueError for an unknown
    name."""
    recipe = RECIPES.get(name.replace("-", "_"))
    if recipe is None:
        near = suggest_near(name, RECIPES)
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)} (got {name!r}){near}")
    return recipe()
