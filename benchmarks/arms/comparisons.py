"""Differences between arms of the ablation, with their error over seeds, beside the paper's.

The runs of a seed share their samples' order and their initial weights, so each difference is taken
between two runs of one seed. Its standard error is the standard deviation of these differences over
the seeds, divided by the root of their number; the test is Student's, two-sided, for pairs.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.arms.scores import CONDITIONS

SIGNIFICANT = 0.05
"""The largest p of a difference that is not assumed to be chance."""
PAPER_NOISE = 0.2
"""The largest difference in the paper, in percentage points, that is treated as none: the paper's
own deviation over seeds (table 8)."""
Row = Mapping[str, str]


@dataclass(frozen=True)
class Score:
    """The scores of one head of an arm's runs, and the paper's figure for it."""

    title: str
    arm: str
    paper: float
    head: str = "both"
    weights: str = "model"

    def read(self, rows: Sequence[Row]) -> dict[int, float]:
        """Return the top-1 accuracy in percent by seed."""
        wanted = (self.arm, self.head, self.weights)
        found = [row for row in rows if (row["arm"], row["head"], row["weights"]) == wanted]
        return {int(row["seed"]): float(row["top1"]) for row in found}


def select_runs(rows: Sequence[Row]) -> list[Row]:
    """Return the rows under the conditions of the newest row; of repeated runs, the newest row."""
    kept = [row for row in rows if all(row[name] == rows[-1][name] for name in CONDITIONS)]
    key = ("arm", "seed", "weights", "head", "step")
    return list({tuple(row.get(name) for name in key): row for row in kept}.values())


@dataclass(frozen=True)
class Effect:
    """The difference between two arms over the seeds that both have, in percentage points."""

    mean: float
    error: float
    """The standard error of `mean`; NaN for one seed."""
    p: float
    """The probability of a mean at least as far from 0 by chance; NaN for one seed."""
    seeds: int


def measure_effect(scores: Mapping[int, float], reference: Mapping[int, float]) -> Effect:
    """Return the difference between two arms, from their scores by seed. Raises ValueError if no
    seed has both."""
    gains = [scores[seed] - reference[seed] for seed in scores if seed in reference]
    if not gains:
        raise ValueError("no seed has runs of both arms")
    mean, count = statistics.fmean(gains), len(gains)
    if count == 1:
        return Effect(mean, math.nan, math.nan, 1)
    error = statistics.stdev(gains) / math.sqrt(count)
    return Effect(mean, error, _find_p(mean, error, count - 1), count)


def _find_p(mean: float, error: float, freedom: int) -> float:
    from scipy.stats import t  # imports slowly

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, freedom))


def judge(effect: Effect, paper: float) -> str:
    """Return a text on whether these runs show the paper's difference; paper: in percentage
    points."""
    if effect.seeds < 2:
        return "one seed: not tested"
    if effect.p >= SIGNIFICANT:
        return "none seen, as in the paper" if abs(paper) <= PAPER_NOISE else "does not show it"
    if abs(paper) <= PAPER_NOISE:
        return "a difference, where the paper has none"
    return "shows it" if effect.mean * paper > 0 else "shows the opposite"
