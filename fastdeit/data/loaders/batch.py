"""A micro-batch of training; the module does not import DALI."""

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
    """The input of `mix`: images (B, 3, H, W) normalised and erased, float32 on a CPU, float16 on a
    GPU; or pixels, which are normalised and erased while they are mixed."""
    labels: torch.Tensor
    """int64 (B,)."""
    lam: torch.Tensor
    """float32 (B,): share of the sample itself after mixing."""
    box: torch.Tensor
    """int32 (B, 4): y0, x0, y1, x1 of the box that is taken from the partner; zeros where the two
    images are blended by `lam` instead."""
    drop_path_mask: torch.Tensor
    """bool (B, depth, 2): DropPath's keep bits of the attention and the MLP branch; (B, copies *
    depth, 2) if the model sees the batch several times."""
    ordinals: torch.Tensor
    """int64 (B,) on the CPU: places in the epoch's global order."""
    image_index: torch.Tensor
    """int64 (B,) on the CPU: rows of the index."""
    teacher_record: torch.Tensor | None = None
    """uint8 (B, n): the teacher's recorded outputs; None: there are none."""
    digest: int = 0
    """The digest of all that is planned for the samples (fastdeit/plan/digest.py)."""

    @property
    def images(self) -> torch.Tensor:
        """Return the images, (B, 3, H, W), normalised and erased; from pixels they are computed at
        each access, in float32."""
        return normalise(*self.unmixed) if isinstance(self.unmixed, Pixels) else self.unmixed


def make_blank_batch(
    samples: int, side: int, masks: int, record_bytes: int, device: torch.device
) -> Batch:
    """Return a micro-batch of zeros whose mixed images, targets and masks have the shapes and
    dtypes of all others.

    side: of the images, in pixels; masks: DropPath's masks for one sample, `depth` or copies *
    depth; record_bytes: the bytes of a teacher's record, 0: there are none.
    """
    numbers = torch.zeros(samples, dtype=torch.int64)
    return Batch(
        unmixed=torch.zeros(samples, 3, side, side, device=device),
        labels=numbers.to(device),
        lam=torch.ones(samples, device=device),
        box=torch.zeros(samples, 4, dtype=torch.int32, device=device),
        drop_path_mask=torch.ones(samples, masks, 2, dtype=torch.bool, device=device),
        ordinals=numbers,
        image_index=numbers,
        teacher_record=(
            torch.zeros(samples, record_bytes, dtype=torch.uint8, device=device)
            if record_bytes
            else None
        ),
    )
