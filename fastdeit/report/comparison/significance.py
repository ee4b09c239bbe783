"""A test of whether the accuracies of two runs on the same images differ by chance."""

from dataclasses import dataclass

import numpy as np

from fastdeit.report.predictions import RecordedPredictions


@dataclass(frozen=True)
class HeadTest:
    """McNemar's exact test of one head of two runs.

    Images that both answer rightly, or both wrongly, do not show which is better. Of the others,
    each run would have about half if both were equally good. Source: McNemar 1947, in the exact
    form of Dietterich 1998 (Approximate statistical tests for comparing supervised classification
    learning algorithms), section 3.1.
    """

    head: str
    """The head by MODEL/HEAD."""
    images: int
    """The number of images that both runs have."""
    only_first: int
    """The number of images that only the first run answers rightly."""
    only_other: int
    """The number of images that only the other run answers rightly."""
    p: float
    """The probability of a split at least as uneven if both were equally good; two-sided."""

    def __str__(self) -> str:
        return f"p = {self.p:.2g} ({self.only_first:,} against {self.only_other:,} images)"


def compare_heads(first: RecordedPredictions, other: RecordedPredictions) -> list[HeadTest]:
    """Return a test for each head that both have, over the images that both have; none if they were
    evaluated on other images or other classes."""
    if first.images != other.images or first.classes != other.classes:
        return []
    rows, mine, theirs = np.intersect1d(first.rows, other.rows, return_indices=True)
    if not len(rows):
        return []
    labels = first.labels[mine]
    return [
        _compare_head(
            head, first.answers[head][mine] == labels, other.answers[head][theirs] == labels
        )
        for head in first.answers
        if head in other.answers
    ]


def _compare_head(head: str, first: np.ndarray, other: np.ndarray) -> HeadTest:
    from scipy.stats import binomtest  # imports slowly

    only_first = int((first & ~other).sum())
    only_other = int((other & ~first).sum())
    split = only_first + only_other
    p = float(binomtest(only_first, split).pvalue) if split else 1.0
    return HeadTest(head, len(first), only_first, only_other, p)
