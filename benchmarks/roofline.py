"""The estimate of a training step's time on an H100, for the three sizes of DeiT.

python -m benchmarks.roofline

The model is fastdeit/estimate/roofline.py; no GPU has shown its times yet.
"""

import torch

from fastdeit.estimate.roofline import Shape, find_shape, parts_ms, step_ms
from fastdeit.models.student import build_student

CLASSES = 1000


def shape_of(student: str) -> Shape:
    """Return the sizes of DeiT "tiny", "small" or "base", distilled, 224 px."""
    name = f"deit_{student}_distilled_patch16_224"
    with torch.device("meta"):
        return find_shape(build_student(name, num_classes=CLASSES), CLASSES)


def main() -> None:
    for student in ("tiny", "small", "base"):
        for batch in (128, 256, 1024):
            shape = shape_of(student)
            total = step_ms(shape, batch)
            shares = ", ".join(
                f"{name} {100 * ms / total:.0f} %" for name, ms in parts_ms(shape, batch).items()
            )
            print(f"{student} {batch}: {total:.1f} ms, {1e3 * batch / total:,.0f}/s: {shares}")


if __name__ == "__main__":
    main()
