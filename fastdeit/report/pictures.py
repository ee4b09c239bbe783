"""The contents of a page in addition to a run's curves: plain data, whose texts contain names
unchanged, so that a page must escape them."""

from dataclasses import dataclass

from fastdeit.analysis.disagreement import Disagreement


@dataclass(frozen=True)
class Picture:
    """An encoded picture, and what it shows."""

    data: bytes
    """The encoded picture, WebP or PNG."""
    title: str
    alt: str
    """The text in place of the picture."""
    lines: tuple[str, ...] = ()
    """The planned operations, in the order in which they happen."""


@dataclass(frozen=True)
class Confusion:
    """Images of class `label` for which `predicted` was the answer."""

    label: str
    predicted: str
    count: int
    thumbnails: tuple[Picture, ...] = ()
    """Thumbnails of a few of the images."""


@dataclass(frozen=True)
class ClassRow:
    """The answers for the images of one class."""

    name: str
    images: int
    top1: float
    """Top-1 in percent."""
    confused_with: str
    """The class that its images are most often given; "" if all are right."""
    confused: int
    """The number of images that are given that class."""


@dataclass(frozen=True)
class TokenLayer:
    """A place in the network; analysis/tokens.py and analysis/distance.py define the numbers."""

    name: str
    cosine: float | None
    """The cosine of class and distillation token, the mean over images; None: there is no such
    pair."""
    spread: float | None
    """Standard deviation of the cosine."""
    distance: float | None = None
    """Mean attention distance in pixels, over the heads of a layer."""


@dataclass(frozen=True)
class Pictures:
    """The contents of a page for one run; `notes` has a line for each of them that could not be
    drawn."""

    samples: tuple[Picture, ...] = ()
    """Pictures of the first samples of the run: the stored image with its crop, the image augmented
    and erased, and mixed."""
    attention: tuple[Picture, ...] = ()
    """Pictures of validation images: the image, then the maps of each special token."""
    head: str = ""
    """The head whose answers classes and confusions count."""
    confusions: tuple[Confusion, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    tokens: tuple[TokenLayer, ...] = ()
    disagreement: Disagreement | None = None
    notes: tuple[str, ...] = ()
