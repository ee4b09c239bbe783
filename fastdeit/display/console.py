"""What a person sees of a run: a heading, progress, notes, the table at the end. Rank 0 speaks, the
others are silent.

A terminal that has gone away, or a full disk below a log, is no reason to end a run: then nothing
more is said.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_QUIET_S = 15.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Says no more; rich would end the process."""
        self.quiet = True


class RunConsole:
    """Progress of one training run; a live bar on a terminal, else a line every 15 seconds.

    epochs, steps_per_epoch: the length of the run; enabled: whether this process speaks.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, enabled: bool) -> None:
        self._console = _Console(quiet=not enabled, highlight=False)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(
            *columns, console=self._console, disable=not (enabled and self._console.is_terminal)
        )
        self._task = self._progress.add_task("starting", total=epochs * steps_per_epoch, facts="")
        self._spoken = time.monotonic()

    def heading(self, facts: Mapping[str, str]) -> None:
        """The run's facts, a line each; then the progress starts."""
        width = max(map(len, facts))
        with self._speaking():
            for name, text in facts.items():
                self._console.print(f"[bold]{name:<{width}}[/]  {escape(text)}", soft_wrap=True)
            self._progress.start()

    def step(self, step: int, *, loss: float, lr: float, images_per_s: float) -> None:
        """The means since the last call, after optimizer step `step`."""
        epoch = min((step - 1) // self._steps_per_epoch + 1, self._epochs)
        facts = f"loss {loss:.3f}  lr {lr:.2e}  {images_per_s:,.0f} images/s"
        self._progress.update(
            self._task, completed=step, description=f"epoch {epoch}/{self._epochs}", facts=facts
        )
        if self._progress.disable and time.monotonic() - self._spoken > _QUIET_S:
            self.note(f"epoch {epoch}/{self._epochs}  step {step}  {facts}")

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        with self._speaking():
            self._console.print(text, soft_wrap=True, markup=False)
        self._spoken = time.monotonic()

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.quiet = True

    def stop(self) -> None:
        with self._speaking():
            self._progress.stop()

    def summary(
        self, results: Mapping[str, float], files: Mapping[str, Any], next_command: str
    ) -> None:
        """The table at the end: accuracy of each head of model and average, of the teacher, and
        their agreement."""
        self.stop()
        agreeing = any(name.endswith("/agreement") for name in results)
        table = Table(
            "validation", "top-1 %", "top-5 %", *(["agrees with teacher %"] if agreeing else [])
        )
        heads = any(name.startswith("model/cls/") for name in results)
        for title, key in _ROWS.items():
            title = title if heads else title.removesuffix(", both heads")
            if f"{key}/top1" in results:
                cells = [
                    results.get(f"{key}/{measure}")
                    for measure in ("top1", "top5", *(["agreement"] if agreeing else []))
                ]
                table.add_row(title, *("" if cell is None else f"{cell:.2f}" for cell in cells))
        with self._speaking():
            self._console.print(table)
            for name, path in files.items():
                self._console.print(f"{name}: {path}", soft_wrap=True)
            self._console.print(f"next: [bold]{next_command}[/]", soft_wrap=True)


_ROWS = {
    "class head": "model/cls",
    "distillation head": "model/dist",
    "model, both heads": "model/both",
    "EMA, class head": "ema/cls",
    "EMA, distillation head": "ema/dist",
    "EMA, both heads": "ema/both",
    "teacher": "teacher/both",
}
