"""`Config` and the recipes of the library: equal to the command line's, errors that name fields."""

import pytest

from fastdeit.config import recipes, schema
from fastdeit.library.config import RECIPES, Config


def test_recipes_are_those_of_the_command_line() -> None:
    assert RECIPES.keys() == recipes.RECIPES.keys()
    for name, recipe in RECIPES.items():
        assert recipe().to_dict() == recipes.RECIPES[name]().to_dict()
        assert recipe.__doc__ == recipes.RECIPES[name].__doc__ and recipe.__name__ == name
        assert isinstance(recipe(), schema.Config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"lr": -1.0}}, r"^lr must be above 0 \(got -1.0\)$"),
        ({"optim": {"lrr": 1.0}}, r"^Config: a field must be one of .* \(got 'lrr'\)$"),
        ({"optim": {"lr": "1"}}, r"^Config: lr must be float \(got '1'\)$"),
        ({"optimizer": {}}, r"^Config: a section must be one of .* \(got 'optimizer'\)$"),
        ({"distill": {"bce_loss": True}}, r"^smoothing must be 0 with bce_loss"),
    ],
)
def test_an_error_names_the_field(sections: dict[str, dict[str, object]], message: str) -> None:
    for config in (Config(), RECIPES["digits"]()):
        with pytest.raises(ValueError, match=message):
            config.replace(**sections)


def test_a_change_keeps_the_rest() -> None:
    changed = RECIPES["digits"]().replace(optim={"epochs": 3}, data={"mean": [0.5, 0.5, 0.5]})
    assert isinstance(changed, Config) and changed.optim.epochs == 3
    assert changed.data.mean == (0.5, 0.5, 0.5)
    assert changed.model == RECIPES["digits"]().model
