"""Callbacks: receivers of what happens in a run, those of the user and our own."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastdeit.config.parse import require


@dataclass(frozen=True)
class RunStart:
    """A start of a run, its first one or a later one."""

    folder: Path
    """The run folder; a file `stop` that is created in it stops the run after the next step."""
    recipe: str
    settings: Mapping[str, Mapping[str, Any]]
    """The settings: sections of fields, as in config.yaml."""
    facts: Mapping[str, str]
    """The rows of the heading that the run prints."""
    step: int
    """The number of optimizer steps done by earlier starts; lines of later steps are no longer
    valid."""
    total_steps: int
    logged_step: int
    """The last step of which an earlier start wrote a line; it may be after `step`."""


@dataclass(frozen=True)
class RunEnd:
    """The end of a start: the run is finished, was stopped, or failed."""

    outcome: Literal["finished", "stopped", "failed"]
    step: int
    reason: str = ""
    """The reason why it stopped or failed."""
    results: Mapping[str, float] = field(default_factory=dict)
    """The scores of a finished run by MODEL/HEAD/MEASURE, as in summary.json."""


class Callback:
    """A receiver of what happens in a run; override the methods that are of use.

    The methods are called on rank 0, one after the other, in a thread of their own: the run does
    not wait for them. An exception ends this callback, with a note, and not the run. Arguments must
    not be changed. `fastdeit train --callback MODULE:CLASS` creates an object of a class without
    arguments; `train_run(config, callbacks=[...])` takes objects.
    """

    def on_start(self, run: RunStart) -> None:
        """Begin; the first call of each start of the run."""

    def on_images(self, step: int, images: np.ndarray, titles: list[str]) -> None:
        """Receive the first training samples of the run, as the student gets them: uint8
        (B, H, W, 3), with a title each."""

    def on_log(self, line: Mapping[str, Any]) -> None:
        """Receive a line of the log from training: the fields of docs/log.md."""

    def on_evaluation(self, line: Mapping[str, Any]) -> None:
        """Receive a line of the log from an evaluation: `step`, and percents by
        MODEL/HEAD/MEASURE."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Receive the folder of a checkpoint that has been saved."""

    def on_note(self, text: str) -> None:
        """Receive a line that the run prints: a skipped step, a spike, a full disk, a rollback."""

    def on_rollback(self, step: int) -> None:
        """Roll back: the run continues from `step`, and what came after it is not valid."""

    def on_end(self, end: RunEnd) -> None:
        """End; the last call of each start, unless the process is killed. The run waits for it, at
        most `trackers.END_LIMIT_S`."""


def load_callback(name: str) -> Callback:
    """Return the callback that --callback names: the object that MODULE:CLASS makes.

    Raises SettingError for any other name.
    """
    module_name, _, attribute = name.partition(":")
    maker = getattr(_import_module(name, module_name), attribute, None) if attribute else None
    allowed = "MODULE:CLASS, a class without arguments that extends fastdeit.Callback"
    require(callable(maker), "callback", name, allowed)
    assert maker is not None
    try:
        made = maker()
    except (Exception, SystemExit) as error:
        fault = f"{type(error).__name__}: {error}"
        require(False, "callback", name, f"{allowed}; this one raises {fault}")
    require(isinstance(made, Callback), "callback", name, allowed)
    return made  # type: ignore[no-any-return]


def _import_module(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        fault = f"{type(error).__name__}: {error}"
        allowed = f"MODULE:CLASS of a module on the Python path; its import raises {fault}"
        require(False, "callback", name, allowed)
