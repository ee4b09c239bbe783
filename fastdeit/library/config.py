"""`Config` and the recipes, as `import fastdeit` offers them: their errors name arguments."""

from collections.abc import Callable
from typing import Any

from fastdeit.config import recipes, schema
from fastdeit.config.file import config_from_dict
from fastdeit.library.errors import argument_errors


class Config(schema.Config):
    """A whole run: frozen sections of settings, with every default (fastdeit/config/schema/).

    Raises ValueError naming the field.
    """

    def __post_init__(self) -> None:
        with argument_errors():
            super().__post_init__()

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """Return a copy with fields of sections changed: `config.replace(optim={"epochs": 3})`.

        Raises ValueError naming the section or the field that does not exist, is of another type,
        or has a value that is not allowed.
        """
        with argument_errors():
            changed = config_from_dict(schema.Config(**vars(self)), sections, "Config")
            return Config(**vars(changed))


def _offer(recipe: Callable[[], schema.Config]) -> Callable[[], Config]:
    def build() -> Config:
        return Config(**vars(recipe()))

    build.__doc__ = recipe.__doc__
    build.__name__ = recipe.__name__
    return build


RECIPES: dict[str, Callable[[], Config]] = {
    name: _offer(recipe) for name, recipe in recipes.RECIPES.items()
}
"""Named starting points for a run: functions that return a `Config`."""
