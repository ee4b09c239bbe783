"""Console output of a run: the heading, progress, notes, and the table at the end."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table

from fastdeit.display.progress import ProgressBar, format_duration
from fastdeit.display.terminal import Terminal

_ROWS = {
    "class head": "model/cls",
    "distillation head": "model/dist",
    "model, both heads": "model/both",
    "EMA, class head": "ema/cls",
    "EMA, distillation head": "ema/dist",
    "EMA, both heads": "ema/both",
    "teacher": "teacher/both",
}


class _Column(NamedTuple):
    """A measure in the table of scores."""

    title: str
    measure: str
    digits: int = 2

    def format(self, value: float | None) -> str:
        """Return a cell."""
        return "" if value is None else f"{value:.{self.digits}f}"


_COLUMNS = (
    _Column("top-1 %", "top1"),
    _Column("top-5 %", "top5"),
    _Column("ReaL top-1 %", "real_top1"),
    _Column("ReaL top-5 %", "real_top5"),
    _Column("NLL", "nll", 4),
    _Column("ECE %", "ece"),
    _Column("agrees with teacher %", "agreement"),
)


class RunConsole:
    """The console of one training run.

    epochs, steps_per_epoch: the length of the run; enabled: False on all ranks but rank 0, which
    print nothing.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, enabled: bool) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._terminal = Terminal(enabled)
        steps = epochs * steps_per_epoch
        self._bar = ProgressBar(self._terminal, steps, "starting", remaining=False)

    def heading(self, facts: Mapping[str, str]) -> None:
        """Print the run's facts, one per line, and start the progress bar."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self._terminal.say(text, label=f"{name:<{width}}  ")
        self._bar.start()

    def step(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        images_per_s: float,
        mfu: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Show the means since the last call, after optimizer step `step`.

        mfu: model FLOPs as a share of the device's peak; seconds_left: of the run; None: not known.
        """
        number = min((step - 1) // self._steps_per_epoch + 1, self._epochs)
        epoch = f"epoch {number}/{self._epochs}"
        facts = f"loss {loss:.3f}  lr {lr:.2e}  {images_per_s:,.0f} images/s"
        if mfu is not None:
            facts += f"  {100 * mfu:.1f} % MFU"
        if seconds_left:
            facts += f"  {format_duration(seconds_left)} left"
        self._bar.update(step, facts, epoch, line=f"{epoch}  step {step}  {facts}")

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        self._terminal.say(text)

    def stop(self) -> None:
        """End the progress bar."""
        self._bar.stop()

    def summary(
        self, results: Mapping[str, float], files: Mapping[str, Any], next_command: str
    ) -> None:
        """End the progress bar; print the accuracies, the files, and the command to try next.

        results: accuracy by model, head and measure, as `evaluate` returns them.
        """
        self.stop()
        self._terminal.show(score_table(results))
        for name, path in files.items():
            self._terminal.say(f"{name}: {path}")
        self._terminal.say(next_command, label="next: ")


def score_table(results: Mapping[str, float]) -> Table:
    """Return a table with a row for each head of model, EMA and teacher that was evaluated, and a
    column for each measure.

    results: by model, head and measure, as `evaluate` returns them.
    """
    columns = [
        column for column in _COLUMNS if any(key.endswith(f"/{column.measure}") for key in results)
    ]
    has_heads = any(key.split("/")[1] == "cls" for key in results)
    table = Table("validation", *(column.title for column in columns))
    for title, key in _ROWS.items():
        if f"{key}/top1" not in results:
            continue
        texts = [column.format(results.get(f"{key}/{column.measure}")) for column in columns]
        table.add_row(title if has_heads else title.removesuffix(", both heads"), *texts)
    return table
