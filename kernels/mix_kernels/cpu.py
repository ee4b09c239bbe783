"""Mixing of a batch of pairs on a CPU: `mix_reference` with the same bits, in fewer passes over
memory.

Only rows whose box is empty are blended; of the others only the box is copied. The loop over rows
reads `box`, which on a GPU would be a wait, and which torch.compile cannot trace: there
`mix_reference` is used. Bytes per image of s bytes an element, out as fp32: Mixup reads 9·H·W·s and
writes as much, CutMix reads and writes 3·H·W·s, and the box.
"""

import torch


def mix_on_cpu(
    x: torch.Tensor, lam: torch.Tensor, box: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Mix each row with its partner, row i ^ 1, into `out`, which is returned.

    x: (B, C, H, W) fp32; lam: (B,) fp32; box: (B, 4) int32; out: (B, C, H, W) in any dtype and
    layout.
    """
    y0, x0, y1, x1 = box.unbind(1)
    is_cut = (y1 > y0) & (x1 > x0)
    rows = is_cut.logical_not().nonzero()[:, 0]
    if len(rows) == len(x):
        return out.copy_(_blend(x, x.unflatten(0, (len(x) // 2, 2)).flip(1).flatten(0, 1), lam))
    out.copy_(x)
    if len(rows):
        out[rows] = _blend(x[rows], x[rows ^ 1], lam[rows]).to(out.dtype)
    cut = is_cut.nonzero()[:, 0]
    boxes = box[cut].clamp(min=0).tolist()
    for row, (top, left, bottom, right) in zip(cut.tolist(), boxes, strict=True):
        out[row, :, top:bottom, left:right] = x[row ^ 1, :, top:bottom, left:right]
    return out


def _blend(x: torch.Tensor, partner: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    share = lam.view(-1, 1, 1, 1)
    return share * x + (1 - share) * partner
