"""Console output of a run: the heading, progress, notes, and the table at the end."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from fastdeit.display.progress import ProgressBar
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


class RunConsole:
    """The console of one training run.

    epochs, steps_per_epoch: the length of the run; enabled: False on all ranks but rank 0, which
    print nothing.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, enabled: bool) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._terminal = Terminal(enabled)
        self._bar = ProgressBar(self._terminal, epochs * steps_per_epoch, "starting")

    def heading(self, facts: Mapping[str, str]) -> None:
        """Print the run's facts, one per line, and start the progress bar."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self._terminal.say(text, label=f"{name:<{width}}  ")
        self._bar.start()

    def step(self, step: int, *, loss: float, lr: float, images_per_s: float) -> None:
        """Show the means since the last call, after optimizer step `step`."""
        number = min((step - 1) // self._steps_per_epoch + 1, self._epochs)
        epoch = f"epoch {number}/{self._epochs}"
        facts = f"loss {loss:.3f}  lr {lr:.2e}  {images_per_s:,.0f} images/s"
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
        self._terminal.show(_make_table(results))
        for name, path in files.items():
            self._terminal.say(f"{name}: {path}")
        self._terminal.say(next_command, label="next: ")


def _make_table(results: Mapping[str, float]) -> Table:
    """Return a table with a row for each head of model, EMA and teacher that was evaluated."""
    columns = {"top-1 %": "top1", "top-5 %": "top5"}
    if any(key.endswith("/agreement") for key in results):
        columns["agrees with teacher %"] = "agreement"
    has_heads = any(key.startswith("model/cls/") for key in results)
    table = Table("validation", *columns)
    for title, key in _ROWS.items():
        if f"{key}/top1" not in results:
            continue
        cells = [results.get(f"{key}/{name}") for name in columns.values()]
        texts = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        table.add_row(title if has_heads else title.removesuffix(", both heads"), *texts)
    return table
