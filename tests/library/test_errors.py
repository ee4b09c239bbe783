"""Errors of the library name arguments, and stay what they were."""

import os
import pickle

import pytest

from fastdeit.config.parse import SettingError, require
from fastdeit.config.schema import Config
from fastdeit.library.errors import argument_errors, name_arguments, names_arguments


def test_a_refused_setting_knows_its_name_value_and_what_is_allowed() -> None:
    with pytest.raises(SettingError, match=r"^--batch-size must be 2 or more \(got 1\)$") as caught:
        require(False, "batch_size", 1, "2 or more")
    assert vars(caught.value) == {"name": "batch_size", "value": 1, "allowed": "2 or more"}
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and vars(again) == vars(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--batch-size must be 2 (got 1)", "batch_size must be 2 (got 1)"),
        ("0, or more with --no-sched-on-updates", "0, or more with sched_on_updates=False"),
        ("--data-path: DATA: no such folder", "path: DATA: no such folder"),
        (
            "--lr: train it first: fastdeit train --recipe digits (got 'x'); or --lr 1",
            "lr: train it first: fastdeit train --recipe digits (got 'x'); or lr 1",
        ),
        ("use --cache-miss live or", "use cache_miss live or"),
        (
            "--unknown-flag and a--seed and --seed-x stay",
            "--unknown-flag and a--seed and --seed-x stay",
        ),
    ],
)
def test_flags_become_arguments(text: str, named: str) -> None:
    assert name_arguments(text, {"data_path": "path"}) == named


def test_an_error_keeps_its_type_and_attributes() -> None:
    with (
        pytest.raises(
            SettingError, match=r"^smoothing must be 0 with bce_loss \(got 0.1\)$"
        ) as caught,
        argument_errors(),
    ):
        Config().replace(distill={"bce_loss": True})
    assert caught.value.name == "smoothing"


def test_a_decorated_function_keeps_its_result_and_its_signature() -> None:
    @names_arguments(data_path="path")
    def open_folder(path: str) -> str:
        """Open a folder."""
        if not path:
            raise FileNotFoundError("--data-path must be given")
        return path

    assert open_folder("x") == "x" and open_folder.__doc__ == "Open a folder."
    with pytest.raises(FileNotFoundError, match="^path must be given$"):
        open_folder("")


def test_an_error_of_the_system_keeps_its_parts() -> None:
    with pytest.raises(OSError, match="--seed") as caught, argument_errors():
        os.stat("--seed")
    assert caught.value.filename == "--seed"
