"""The planned operations of a sample in words, against the numbers of the plan."""

import numpy as np

from fastdeit.plan.description import describe_operation, describe_sample
from fastdeit.plan.operations import OPS
from fastdeit.plan.plan import SampleParams

ROTATE, POSTERIZE = OPS.index("Rotate"), OPS.index("PosterizeIncreasing")
NAMES = ("cat", "dog", "cat", "dog")


def make_draws() -> SampleParams:
    """Return four samples: mixed by CutMix; by Mixup; not mixed, with all else; with nothing."""
    zeros = np.zeros((4, 4), np.int32)
    crop = np.array([[3, 2, 20, 18]] * 4, np.int32)
    erase = zeros.copy()
    erase[2] = (5, 6, 7, 8)
    box = zeros.copy()
    box[0] = (0, 0, 4, 4)
    return SampleParams(
        image_index=np.arange(4),
        crop=crop,
        resize=zeros,
        flip=np.array([False, False, True, False]),
        ops=np.array([[-1, -1], [-1, ROTATE], [ROTATE, POSTERIZE], [-1, -1]], np.int32),
        op_args=np.array([[0, 0], [0, -27.0], [12.5, 2], [0, 0]]),
        erase=erase,
        noise_key=np.zeros(4, np.uint64),
        lam=np.array([0.75, 0.25, 1, 1], np.float32),
        box=box,
    )


def test_each_thing_has_a_line_in_its_order() -> None:
    lines = [describe_sample(make_draws(), row, NAMES) for row in range(4)]
    crop = "crop 20 x 18 at (3, 2)"
    assert lines[0] == [crop, "CutMix 0.75 cat + 0.25 dog"]
    assert lines[1] == [crop, "Rotate -27.0 degrees", "Mixup 0.25 dog + 0.75 cat"]
    assert lines[2] == [
        crop,
        "flipped",
        "Rotate +12.5 degrees",
        "Posterize 2 bits",
        "erased 7 x 8 at (5, 6)",
        "not mixed: cat",
    ]
    assert lines[3] == [crop, "not mixed: dog"]


def test_every_operation_has_a_name() -> None:
    names = [describe_operation(op, 1.0) for op in range(-1, len(OPS))]
    assert names[0] == "no operation" and len(set(names)) == len(names)
    assert not any("Increasing" in name or "Rel" in name for name in names)
