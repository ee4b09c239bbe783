"""PIL's Image.resize(BICUBIC) of crops of any size, out of one buffer, with the same bits: what
fastdeit.data.augment.resize does for a sample on the CPU.

Each image is resized to its own size, of which a window of S x S pixels remains, reflected beyond
the edges and mirrored where the plan says so. Two passes, along the rows, then along the columns:

    level = ⌊(Σ weight · level + 2²¹) / 2²²⌋, limited to 0 to 255

PIL takes the columns first in an image over 100 times as high as wide that loses height. Source:
Pillow 12.3, src/libImaging/Resample.c and src/PIL/Image.py (resize).
"""

import torch

from fastdeit.kernels.resize_weights import BITS, places_reference, weights_reference


def _weigh_reference(
    image: torch.Tensor, axis: int, out_size: int, places: torch.Tensor
) -> torch.Tensor:
    """Return the outputs at `places` of one pass along an axis of uint8 (h, w, 3)."""
    last = image.shape[axis] - 1
    first, weights = weights_reference(last + 1, out_size, places)
    total = torch.full((), 1 << (BITS - 1), dtype=torch.int32, device=image.device)
    for tap, weight in enumerate(weights.unbind(1)):
        near = image.index_select(axis, (first + tap).clamp(max=last)).int()
        total = total + near * (weight.view(-1, 1, 1) if axis == 0 else weight.view(-1, 1))
    return (total >> BITS).clamp(0, 255).to(torch.uint8)


def _resize_one(image: torch.Tensor, window: list[int], flip: bool, size: int) -> torch.Tensor:
    """Resize uint8 (h, w, 3); window: resized height and width, y and x."""
    height, width, y, x = window
    rows = places_reference(y, size, height, False, image.device)
    columns = places_reference(x, size, width, flip, image.device)
    passes = [(1, width, columns), (0, height, rows)]
    if image.shape[0] > 100 * image.shape[1] and height < image.shape[0]:
        passes.reverse()
    for axis, out_size, places in passes:
        image = _weigh_reference(image, axis, out_size, places)
    return image


def resize_reference(
    packed: torch.Tensor,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Resize in plain torch, crop by crop; arguments and result as `resize`."""
    _check(packed, start, stride, shape, window, flip, size)
    packed = packed.contiguous()
    out = packed.new_empty(len(start), size, size, 3)
    rows = (tensor.tolist() for tensor in (start, stride, shape, window, flip))
    for row, (first, step, sides, kept, mirrored) in zip(out, zip(*rows, strict=True), strict=True):
        place = packed.storage_offset() + first
        image = packed.as_strided((*sides, 3), (step, 3, 1), place)
        row.copy_(_resize_one(image, kept, mirrored, size))
    return out


_ROWS = {
    "start": (torch.int64, ()),
    "stride": (torch.int32, ()),
    "shape": (torch.int32, (2,)),
    "window": (torch.int32, (4,)),
    "flip": (torch.bool, ()),
}
"""dtype and sizes after the first of what `resize` takes for each crop."""


def _check(
    packed: torch.Tensor,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> None:
    """Raise ValueError unless the arguments of `resize` fit each other."""
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise ValueError(f"packed must be uint8 (n,) (got {packed.dtype} {tuple(packed.shape)})")
    if size < 1:
        raise ValueError(f"size must be at least 1 (got {size})")
    given = (start, stride, shape, window, flip)
    for tensor, (name, (dtype, sizes)) in zip(given, _ROWS.items(), strict=True):
        if tensor.dtype != dtype or tensor.shape != (len(start), *sizes) or not tensor.is_cpu:
            rule = f"{dtype} {(len(start), *sizes)} on the CPU"
            found = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be {rule} (got {found})".replace("torch.", ""))
    _check_values(len(packed), start, stride, shape, window)


def _check_values(
    length: int,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
) -> None:
    """Raise ValueError for a crop that is empty or not inside the buffer."""
    for name, sizes in (("shape", shape), ("window", window[:, :2])):
        wrong = (sizes < 1).any(1).nonzero()
        if len(wrong):
            crop = int(wrong[0, 0])
            raise ValueError(
                f"{name} of crop {crop} must be positive (got {tuple(sizes[crop].tolist())})"
            )
    height, width = shape.long().unbind(1)
    stop = start + (height - 1) * stride + 3 * width
    wrong = ((start < 0) | (stride < 0) | (stop > length)).nonzero()
    if len(wrong):
        crop = int(wrong[0, 0])
        found = f"{int(start[crop])} to {int(stop[crop])}"
        raise ValueError(f"crop {crop} must be inside the {length} bytes of packed (got {found})")


def resize(
    packed: torch.Tensor,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Resize crops of a buffer, and cut out and mirror a window of each.

    packed: uint8 (n,), decoded images, (h, w, 3) each, on any device. The others are on the CPU,
    where the plan makes them. start: int64 (B,), where in packed the crop's first pixel is. stride:
    int32 (B,), bytes from a row of the crop to the next. shape: int32 (B, 2), the crop's height and
    width. window: int32 (B, 4), the height and width to resize to, then y and x of the window;
    beyond the edges of the resized crop it is reflected. flip: bool (B,), mirrored left to right.
    Returns uint8 (B, size, size, 3) on packed's device. Raises ValueError on another dtype, a shape
    or a device that does not fit, and for a crop that is empty or not inside packed.
    """
    return resize_reference(packed, start, stride, shape, window, flip, size)
