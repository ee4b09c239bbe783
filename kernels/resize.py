"""PIL's Image.resize(BICUBIC) of crops of any size, from one buffer, with the same bits: what
fastdeit.data.augment.resize.window does for a sample on the CPU.

Each crop is resized to its own size, of which a window of S x S pixels remains, reflected beyond
the edges and mirrored where the plan says so. Two passes, along the rows, then along the columns;
PIL takes the columns first in a crop over 100 times as high as wide that loses height.

Three launches: the weights, the first pass, the second. The host knows the crops from the plan, so
it sizes the buffers and reads nothing from the device. The device computes the weights. On the host
torch needs 0.2 ms for those of a crop, 300 times as long as for the crop's row in the table that is
copied to the device, and 4 % more bytes would be copied.

Bytes per crop of h x w: reads 3·h·w, writes and reads 3·h·S between the passes, writes 3·S², and 8
bytes per weight. For RandomResizedCrop of ImageNet's mean image at 224 px: 0.73 MB, twice the least
(benchmarks/bench_resize.py). Source: Pillow 12.3, src/libImaging/Resample.c and src/PIL/Image.py
(resize).
"""

import torch

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.operators import operator
from fastdeit.kernels.resize_kernels.passes import launch_passes, weigh_reference
from fastdeit.kernels.resize_kernels.weights import launch_weights, places_reference

Crops = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""The arguments start, stride, shape, window and flip of `resize`."""
_ROWS = {
    "start": (torch.int64, ()),
    "stride": (torch.int32, ()),
    "shape": (torch.int32, (2,)),
    "window": (torch.int32, (4,)),
    "flip": (torch.bool, ()),
}
"""The dtype of each of these arguments, and its sizes after the first."""


def _resize_one(image: torch.Tensor, window: list[int], flip: bool, size: int) -> torch.Tensor:
    """Resize uint8 (h, w, 3); window: resized height and width, y and x."""
    height, width, y, x = window
    rows = places_reference(y, size, height, False, image.device)
    columns = places_reference(x, size, width, flip, image.device)
    passes = [(1, width, columns), (0, height, rows)]
    if image.shape[0] > 100 * image.shape[1] and height < image.shape[0]:
        passes.reverse()
    for axis, out_size, places in passes:
        image = weigh_reference(image, axis, out_size, places)
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
    crops = (start, stride, shape, window, flip)
    _check(packed, crops, size)
    _check_values(len(packed), *crops)
    packed = packed.contiguous()
    out = packed.new_empty(len(start), size, size, 3)
    rows = zip(out, *(tensor.tolist() for tensor in crops), strict=True)
    for row, first, step, sides, kept, mirrored in rows:
        place = packed.storage_offset() + first
        image = packed.as_strided((*sides, 3), (step, 3, 1), place)
        row.copy_(_resize_one(image, kept, mirrored, size))
    return out


def _fill_table(
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the kernels' table, int64 (B, COLUMNS), the number of lines of each crop, int64 (B,),
    and the number of taps of all passes together; arguments as of `resize`."""
    backwards = torch.stack((torch.zeros_like(flip), flip), 1)
    passes = torch.stack((shape, window[:, :2], window[:, 2:], backwards), 2).long()
    steps = torch.stack((torch.full_like(stride, 3), stride), 1)
    tall = (shape[:, 0] > 100 * shape[:, 1]) & (window[:, 0] < shape[:, 0])
    passes = torch.where(tall.view(-1, 1, 1), passes, passes.flip(1))  # (B, 2, 4)
    steps = torch.where(tall.view(-1, 1), steps.flip(1), steps)
    top, bottom = _lines_of(passes[:, 1], size).unbind(1)
    line = _sums_before(bottom - top) - top
    taps = (_supports_of(passes).ceil() * 2 + 1).long()
    weights = _sums_before(taps.view(-1)).view(-1, 2, 1) * size
    crops = torch.stack((start, *steps.unbind(1), top, bottom, line, tall), 1)
    table = torch.cat((crops, torch.cat((passes, weights), 2).flatten(1)), 1)
    return table, bottom - top, int(taps.sum())


def _supports_of(passes: torch.Tensor) -> torch.Tensor:
    """Return how far the filter reaches in each pass, in inputs, float64 (...,); passes: int64
    (..., 4), the sizes before and after it, then two values that are not read."""
    return 2.0 * (passes[..., 0].double() / passes[..., 1]).clamp(min=1.0)


def _lines_of(passes: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first of the lines that the second pass takes, and the one after the last, int64
    (B, 2); all of them where the window reaches beyond the edges."""
    in_size, out_size, start, _ = passes.unbind(1)
    within = (start >= 0) & (start + size <= out_size)
    scale = in_size.double() / out_size
    support = _supports_of(passes)
    top = ((start + 0.5) * scale - support + 0.5).long().clamp(min=0)
    bottom = torch.minimum(((start + size - 0.5) * scale + support + 0.5).long(), in_size)
    lines = torch.stack((top, bottom), 1)
    return torch.where(within.view(-1, 1), lines, torch.stack((0 * in_size, in_size), 1))


def _sums_before(counts: torch.Tensor) -> torch.Tensor:
    """Return for each element the sum of those before it."""
    return counts.cumsum(0) - counts


@operator(
    "resize",
    fake=lambda packed, start, stride, shape, window, flip, size: packed.new_empty(
        len(start), size, size, 3
    ),
)
def _launch(
    packed: torch.Tensor,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Check the values, which a compiler does not see, and launch the kernels."""
    _check_values(len(packed), start, stride, shape, window, flip)
    out = packed.new_empty(len(start), size, size, 3)
    if len(start):
        rows, lines, taps = _fill_table(start, stride, shape, window, flip, size)
        if packed.is_cuda:
            rows = rows.pin_memory().to(packed.device, non_blocking=True)
        inputs, weights = launch_weights(rows, size, taps)
        counts = (int(lines.sum()), int(lines.max()))
        launch_passes(packed.contiguous(), rows, inputs, weights, counts, out)
    return out


def _check(packed: torch.Tensor, crops: Crops, size: int) -> None:
    """Raise ValueError unless dtypes, shapes and devices are those of `resize`."""
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise ValueError(f"packed must be uint8 (n,) (got {packed.dtype} {tuple(packed.shape)})")
    if size < 1:
        raise ValueError(f"size must be at least 1 (got {size})")
    count = len(crops[0])
    for tensor, (name, (dtype, sizes)) in zip(crops, _ROWS.items(), strict=True):
        if tensor.dtype != dtype or tensor.shape != (count, *sizes) or not tensor.is_cpu:
            rule = f"{dtype} {(count, *sizes)} on the CPU"
            found = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be {rule} (got {found})".replace("torch.", ""))


def _check_values(
    length: int,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
) -> None:
    """Raise ValueError for a crop that is empty, not inside the buffer, or 2 GiB large."""
    for name, sizes in (("shape", shape), ("window", window[:, :2])):
        wrong = (sizes < 1).any(1).nonzero()
        if len(wrong):
            crop = int(wrong[0, 0])
            raise ValueError(
                f"{name} of crop {crop} must be positive (got {tuple(sizes[crop].tolist())})"
            )
    height, width = shape.long().unbind(1)
    extent = (height - 1) * stride + 3 * width
    wrong = ((start < 0) | (stride < 0) | (start + extent > length) | (extent >= 1 << 31)).nonzero()
    if len(wrong):
        crop = int(wrong[0, 0])
        rule = f"less than 2 GiB and inside the {length} bytes of packed"
        found = f"{int(start[crop])} to {int(start[crop] + extent[crop])}"
        raise ValueError(f"crop {crop} must be {rule} (got {found})")


def resize_triton(
    packed: torch.Tensor,
    start: torch.Tensor,
    stride: torch.Tensor,
    shape: torch.Tensor,
    window: torch.Tensor,
    flip: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Launch the kernels; arguments and result as `resize`. Takes CPU tensors under
    TRITON_INTERPRET=1."""
    _check(packed, (start, stride, shape, window, flip), size)
    return _launch(packed, start, stride, shape, window, flip, size)


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

    packed: uint8 (n,), decoded images, (h, w, 3) each, one after another, on any device. The others
    are on the CPU, where the plan makes them. start: int64 (B,), the place in packed of the crop's
    first byte. stride: int32 (B,), bytes from a row of the crop to the next. shape: int32 (B, 2),
    the crop's height and width. window: int32 (B, 4), the height and width to resize to, then y and
    x of the window; beyond the edges of the resized crop it is reflected. flip: bool (B,), mirrored
    left to right. Returns uint8 (B, size, size, 3) on packed's device. Raises ValueError on another
    dtype, a shape or a device that does not fit, and for a crop that is empty or not inside packed.
    """
    run = resize_triton if is_fused(packed) else resize_reference
    return run(packed, start, stride, shape, window, flip, size)
