"""Weights & Biases: a run's numbers, sent by a process of its own.

wandb replaces `sys.exit` and the exception hook, starts threads, and waits at the exit of the
process that imports it. So a child imports it (tracking/wandb_child.py), which the run can end.
"""

import base64
import importlib.util
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdeit.config.parse import require
from fastdeit.display.text import printable
from fastdeit.distributed.environment import make_child_environment
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.jsonl import read_json_lines, to_strict_json
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart
from fastdeit.tracking.names import group_line, group_scores

FINISH_LIMIT_S = 25.0
"""Seconds that wandb has at the end of a run to send what is left."""
_MAX_ERROR = 500  # letters of what the child says when it fails


def check_wandb() -> None:
    """Raise SettingError unless wandb is installed."""
    found = importlib.util.find_spec("wandb") is not None
    require(found, "log_wandb", True, "off without wandb: pip install 'fastdeit[wandb]'")


class WandbTracker(Callback):
    """A run at Weights & Biases, or in `folder`/wandb with WANDB_MODE=offline.

    id_file: holds the run's id there, so that a resumed run continues it; project, tags: of
    --wandb-project and --wandb-tags, "" for wandb's own default. Lines that an earlier start has
    sent are not sent again.
    """

    def __init__(self, folder: Path, id_file: Path, project: str, tags: Sequence[str]) -> None:
        self._folder = folder
        self._id_file = id_file
        self._project = project
        self._tags = list(tags)
        self._sent_step = 0
        self._child: _Child | None = None

    def on_start(self, run: RunStart) -> None:
        run_id = self._find_id()
        # only of a run that had wandb before
        self._sent_step = run.logged_step if run_id else 0
        run_id = run_id or secrets.token_hex(4)
        atomic_write_text(self._id_file, json.dumps({"id": run_id}) + "\n")
        self._child = _Child()
        self._child.begin(
            id=run_id,
            dir=str(self._folder),
            name=printable(self._folder.resolve().name),
            project=self._project or None,
            tags=self._tags or None,
            config={"recipe": run.recipe, **run.settings},
            pid=os.getpid(),
        )

    def on_images(self, step: int, images: np.ndarray, titles: list[str]) -> None:
        pictures = [
            {"png": _encode_png(image), "caption": title}
            for image, title in zip(images, titles, strict=True)
        ]
        self._send("images", step=step, name="samples", pictures=pictures)

    def on_log(self, line: Mapping[str, Any]) -> None:
        if line["step"] > self._sent_step:
            self._send("log", step=line["step"], values=group_line(line))

    def on_evaluation(self, line: Mapping[str, Any]) -> None:
        if line["step"] >= self._sent_step:
            self._send("log", step=line["step"], values=group_scores(line))

    def on_end(self, end: RunEnd) -> None:
        if self._child is not None:
            self._send("finish", exit_code=int(end.outcome == "failed"))
            self._child.finish()

    def _send(self, event: str, **fields: Any) -> None:
        assert self._child is not None, "on_start comes first"
        self._child.send(event, **fields)

    def _find_id(self) -> str:
        """Return the id that an earlier start has stored, "" if there is none."""
        stored = [line.get("id") for line in read_json_lines(self._id_file)]
        return stored[0] if stored and isinstance(stored[0], str) else ""


def _encode_png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class _Child:
    """The process that imports wandb: it reads events as lines of JSON, and ends with the run."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastdeit.tracking.wandb_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=make_child_environment() | {"WANDB_SILENT": "true"},
            start_new_session=True,  # Ctrl-C is for the run
        )

    def begin(self, **settings: Any) -> None:
        """Open the run; wait for wandb's answer. Raises RuntimeError if wandb fails."""
        self.send("start", **settings)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.wait()
            raise RuntimeError(self._read_error())

    def send(self, event: str, **fields: Any) -> None:
        """Send an event. Raises RuntimeError, with the output of the child, if it has ended."""
        line = json.dumps(to_strict_json({"event": event, **fields})) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._read_error()) from None

    def finish(self) -> None:
        """Wait until all is sent. Raises RuntimeError if that fails or takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(FINISH_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise RuntimeError(f"not all was sent within {FINISH_LIMIT_S:g} s") from None
        if code != 0:
            raise RuntimeError(self._read_error())

    def _read_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:_MAX_ERROR] if lines else "wandb's process has ended"
