"""A micro-batch of training. Importing it needs no DALI."""

from dataclasses import dataclass

import torch

from fastdeit.kernels.normalise import Pixels, normalise


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training; the partner of row i is row i ^ 1.

    Every tensor is on the loader's device, except `ordinals` and `image_index`, which only the host
    reads.
    """

    unmixed: torch.Tensor | Pixels
    """What `mix` takes: images (B, 3, H, W) normalised and erased, float32 on a CPU, float16 on a
    GPU; or pixels, which are normalised and erased while they are mixed."""
    labels: torch.Tensor
    """int64 (B,)."""
    lam: torch.Tensor
    """float32 (B,): share of the sample itself."""
    box: torch.Tensor
    """int32 (B, 4): y0, x0, y1, x1 taken from the partner; zeros: blended by `lam`."""
    drop_path_mask: torch.Tensor
    """bool (B, depth, 2): DropPath's keep bits of the attention and the MLP branch; (B, copies *
    depth, 2) if the model sees the batch several times."""
    ordinals: torch.Tensor
    """int64 (B,) on the CPU: places in the epoch's order."""
    image_index: torch.Tensor
    """int64 (B,) on the CPU: rows of the index."""
    teacher_record: torch.Tensor | None = None
    """uint8 (B, n): the teacher's recorded outputs; None: there are none."""
    digest: int = 0
    """Of all that is planned for its samples (fastdeit/plan/digest.py)."""

    @property
    def images(self) -> torch.Tensor:
        """(B, 3, H, W) normalised and erased; out of pixels it is computed at each access, in
        float32."""
        return normalise(*self.unmixed) if isinstance(self.unmixed, Pixels) else self.unmixed
