"""The disagreement of classifiers: percent of images that two of them classify differently.

Source: Touvron et al. 2021 (2012.12877), table 4, where the distillation head of a DeiT-B disagrees
with its ConvNet teacher on 10.0 % of ImageNet's validation images, the class head on 11.2 %, and
the heads with each other on 5.0 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LABELS = "labels"
"""The name of the right answers, which are the first of the classifiers: the disagreement with them
is the error."""


@dataclass(frozen=True)
class Disagreement:
    """The percent of images that each pair of classifiers classifies differently."""

    names: tuple[str, ...]
    """The names: LABELS, then the classifiers by MODEL/HEAD."""
    percent: tuple[tuple[float, ...], ...]
    """The percent of each pair of names; symmetric, 0 on the diagonal."""
    images: int

    def between(self, one: str, other: str) -> float:
        """Return the percent of a pair. Raises ValueError for an unknown name."""
        return self.percent[self.names.index(one)][self.names.index(other)]


def compare_answers(
    labels: np.ndarray | Sequence[object], answers: Mapping[str, np.ndarray | Sequence[object]]
) -> Disagreement:
    """Return the disagreement of all pairs.

    labels: (N,), the classes of the images; answers: (N,) of each classifier, the same kind of
    values. Raises ValueError for arrays of other lengths, and without an image.
    """
    rows = {LABELS: np.asarray(labels), **{name: np.asarray(row) for name, row in answers.items()}}
    lengths = {len(row) for row in rows.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"answers must be those for the same images, 1 or more (got {lengths})")
    percent = [tuple(_differ(one, other) for other in rows.values()) for one in rows.values()]
    return Disagreement(tuple(rows), tuple(percent), lengths.pop())


def _differ(one: np.ndarray, other: np.ndarray) -> float:
    return 100 * float((one != other).mean())
