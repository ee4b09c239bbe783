"""The parts that the page's template places: sections with tables, pictures, plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdeit.audit.findings import Audit
from fastdeit.report.page.models import Figure, PictureBudget
from fastdeit.report.page.plots import Key, TimeAxis
from fastdeit.report.page.tables import Table
from fastdeit.report.pictures import Pictures
from fastdeit.report.record import RunRecord


@dataclass(frozen=True)
class Plot:
    """A plot, its legend, and the same numbers as text. figure: its name among the figures."""

    figure: str
    title: str
    unit: str
    keys: Sequence[Key]
    sentences: Sequence[str]
    """A sentence for each curve; the first `few` are always shown."""
    few: int
    table: Table


@dataclass(frozen=True)
class Part:
    """A part of a section; of several runs, each run has one."""

    title: str = ""
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Figure] = ()
    plot: Plot | None = None

    @property
    def is_empty(self) -> bool:
        """Return True if there is nothing to show."""
        return not (self.text or self.tables or self.pictures or self.plot)


@dataclass(frozen=True)
class Section:
    """A section of the page. id: its name in links."""

    id: str
    title: str
    text: str = ""
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Content:
    """All that the template places."""

    sections: Sequence[Section]
    figures: dict[str, Any]
    axis: TimeAxis
    marks: Sequence[dict[str, Any]]


@dataclass
class Runs:
    """The runs, by what is known of them; `names` has one for each."""

    records: Sequence[RunRecord]
    pictures: Sequence[Pictures]
    names: Sequence[str]
    audits: Sequence[Audit | None]
    figures: dict[str, Any] = field(default_factory=dict)
    budget: PictureBudget = field(default_factory=PictureBudget)

    @property
    def titles(self) -> Sequence[str]:
        """Return the title of each run's part: none for a single run."""
        return self.names if len(self.names) > 1 else [""]

    def each(self, make: Callable[[int], Part]) -> list[Part]:
        """Return the parts that the runs have."""
        parts = [make(run) for run in range(len(self.records))]
        return [part for part in parts if not part.is_empty]
