"""Console output of a run: the heading, progress, notes, and the table at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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


_FACTS: Mapping[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "seconds_left": lambda left: f"{format_duration(left)} left" if left else "",
    "images_per_s": "{:,.0f} images/s".format,
    "data_wait": lambda share: f"data wait {100 * share:.0f} %",
    "memory_gb": "{:.1f} GB".format,
    "mfu": lambda share: f"{100 * share:.1f} % MFU",
    "lr": "lr {:.2e}".format,
}
"""The fields of the log that the progress bar shows, the most important first."""


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

    epochs, steps_per_epoch: the length of the run; enabled: whether it prints, True on rank 0
    alone.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, enabled: bool) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._terminal = Terminal(enabled)
        self._listener: Callable[[str], None] = lambda text: None
        steps = epochs * steps_per_epoch
        self._bar = ProgressBar(self._terminal, steps, "starting", remaining=False)

    def heading(self, facts: Mapping[str, str]) -> None:
        """Print the run's facts, one per line, and start the progress bar."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self._terminal.say(text, label=f"{name:<{width}}  ")
        self._bar.start()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show the means since the last call, after optimizer step `step`.

        values: fields of a line of the log; an unknown field is not shown.
        """
        number = min((step - 1) // self._steps_per_epoch + 1, self._epochs)
        epoch = f"epoch {number}/{self._epochs}"
        known = [form(values[name]) for name, form in _FACTS.items() if name in values]
        facts = list(filter(None, known))
        self._bar.update(step, facts, epoch, line="  ".join([epoch, f"step {step}", *facts]))

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call a listener, too, with each note that is printed from now on."""
        self._listener = listener

    def note(self, text: str) -> None:
        """Print a separate line above the bar."""
        self._terminal.say(text)
        self._listener(text)

    def stop(self) -> None:
        """End the progress bar."""
        self._bar.stop()

    def summary(
        self, results: Mapping[str, float], facts: Mapping[str, str], commands: Sequence[str]
    ) -> None:
        """End the progress bar; print the accuracies, facts and files, and commands to try next.

        results: scores by model, head and measure ("model/cls/top1"), as `evaluate` returns them.
        """
        self.stop()
        self._terminal.show(score_table(results))
        for name, text in facts.items():
            self._terminal.say(f"{name}: {text}")
        self.offer(commands, "next")

    def offer(self, commands: Sequence[str], purpose: str) -> None:
        """Print commands, one a line, in a form that a shell can run."""
        for command in commands:
            self._terminal.say(command, label=f"{purpose}: ")


def score_table(results: Mapping[str, float]) -> Table:
    """Return a table with one row for each evaluated head of model, EMA and teacher, and one column
    for each measure.

    results: scores by model, head and measure ("model/cls/top1"), as `evaluate` returns them.
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
