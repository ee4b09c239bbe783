"""Steps of two runs side by side: up to where they had the same samples and the same losses."""

from collections.abc import Mapping, Sequence

import numpy as np

from fastdeit.report.comparison.rows import Row, keep_recorded, make_row
from fastdeit.report.record import RunRecord

Digests = Mapping[int, str]
"""The hash of all samples by the steps done."""

_LOSSES = ("loss", "base", "distill")


def list_samples(records: Sequence[RunRecord]) -> list[Row]:
    """Return the digest of all samples up to the last step that all runs logged, and from where on
    each run had other samples than the first one; nothing for runs that logged no digest."""
    digests = [_read_digests(record) for record in records]
    known = [one for one in digests if one]
    common = set.intersection(*map(set, known)) if known else set()
    if not common:
        return []
    last = max(common)
    name = f"digest after step {last:,}"
    places = [_find_other_samples(digests[0], one) for one in digests[1:]]
    rows = [
        make_row(name, [one.get(last) for one in digests]),
        make_row("other samples than the first run", [None, *places]),
    ]
    return keep_recorded(rows)


def _read_digests(record: RunRecord) -> dict[int, str]:
    return {line["step"]: str(line["digest"]) for line in record.lines if "digest" in line}


def _find_other_samples(first: Digests, other: Digests) -> str | None:
    """Return in words from which step on the samples of two runs differ; None if not recorded.

    A digest is a sum over all samples, so it shows only the first difference, to within the lines
    that both logs have.
    """
    common = sorted(first.keys() & other.keys())
    if not common:
        return None
    place = next((step for step in common if first[step] != other[step]), None)
    if place is None:
        return f"none up to step {common[-1]:,}"
    before = max((step for step in common if step < place), default=0)
    if before == place - 1:
        return f"from step {before:,} on"
    return f"from one of the steps {before:,} to {place - 1:,} on"


def list_losses(records: Sequence[RunRecord]) -> list[Row]:
    """Return where the losses of each run begin to differ from those of the first one, bit for bit,
    and by how much at most; nothing for runs whose logs have no single steps."""
    pairs = [_LossPair(records[0], record) for record in records[1:]]
    if not pairs or not any(pair.count for pair in pairs):
        return []
    return [
        make_row("steps in both logs", [None, *(pair.count or None for pair in pairs)], _count),
        make_row("first step with another loss", [None, *(pair.first for pair in pairs)], _step),
        make_row(
            "largest difference of the loss", [None, *(pair.largest for pair in pairs)], _loss
        ),
    ]


def _count(count: int) -> str:
    return f"{count:,}"


def _step(step: int) -> str:
    return "none" if step < 0 else f"{step:,}"


def _loss(value: float) -> str:
    return f"{value:.3g}"


class _LossPair:
    """The losses of two runs at the steps that both logged. Attributes: count, the number of these
    steps; first, the first one at which a loss differs, -1 if none does; largest, the largest
    difference of the total loss where both are finite. The last two are None without such steps."""

    def __init__(self, first: RunRecord, other: RunRecord) -> None:
        self.count = 0
        self.first: int | None = None
        self.largest: float | None = None
        mine, theirs = first.steps, other.steps
        if not mine or not theirs:
            return
        steps, here, there = np.intersect1d(mine["step"], theirs["step"], return_indices=True)
        self.count = len(steps)
        names = [name for name in _LOSSES if name in mine and name in theirs]
        if not self.count or not names:
            return
        pairs = {name: (mine[name][here], theirs[name][there]) for name in names}
        equal = [np.array_equal(*pair, equal_nan=True) for pair in pairs.values()]
        self.first = -1 if all(equal) else int(steps[_find_first(list(pairs.values()))])
        self.largest = _find_largest(*pairs[names[0]])


def _find_first(pairs: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Return the first place at which a pair of columns differs."""
    differ = [(one != other) & ~(np.isnan(one) & np.isnan(other)) for one, other in pairs]
    return int(np.argmax(np.any(differ, axis=0)))


def _find_largest(one: np.ndarray, other: np.ndarray) -> float | None:
    finite = np.isfinite(one) & np.isfinite(other)
    return float(np.abs(one[finite] - other[finite]).max()) if finite.any() else None
