"""The keyword arguments of a loader are fields of `Config`."""

import dataclasses

import pytest

from fastdeit.config.schema import Config
from fastdeit.library.settings import LoaderSettings, check_names, configure

OWN = {"data_path", "train_split", "aug_repeats", "repeated_aug"}
"""Fields that `create_loader` has under a name of its own."""
EVALUATION = {"val_split", "eval_crop_ratio", "eval_input_size"}


def test_the_settings_are_the_fields_that_decide_samples() -> None:
    config = Config()
    fields = {
        item.name: item.type
        for section in (config.data, config.augment, config.mix)
        for item in dataclasses.fields(section)
    }
    others = {
        item.name: item.type
        for section in (config.run, config.distill)
        for item in dataclasses.fields(section)
    }
    names = LoaderSettings.__annotations__.keys()
    assert fields.keys() - names - EVALUATION == OWN
    types = fields | others
    assert {name: types[name] for name in names} == LoaderSettings.__annotations__


def test_fields_go_into_their_sections() -> None:
    config = configure({"mixup": 0.3, "seed": 7, "input_size": 32}, "f")
    assert (config.mix.mixup, config.run.seed, config.data.input_size) == (0.3, 7, 32)
    assert configure({}, "f") == Config()


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    check_names(["aa"], ["aa"], "f")
    with pytest.raises(TypeError, match=r"^f\(\) has no keyword argument 'inputsize'; near: input"):
        check_names(["inputsize"], ["input_size"], "f")
