"""Small pictures for a page: images beside each other, frames, heat maps, as encoded files."""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image, features

_FRAME = (255, 0, 0)
_GAP = 4  # transparent pixels between two images
_WIDEST = 2  # times the height; a wider image is made smaller
_TINY = 64  # pixels a side up to which an image is encoded without a loss
_QUALITY = 80  # of WebP


def draw_row(images: Sequence[np.ndarray], height: int) -> bytes:
    """Return a WebP (PNG, where Pillow has no WebP) of images, uint8 (H, W, 3), beside each other;
    height: of each, in pixels.

    Small images are enlarged without a filter, so that each pixel is visible.
    """
    cells = [_fit(image, height) for image in images]
    width = sum(cell.width for cell in cells) + _GAP * (len(cells) - 1)
    row = Image.new("RGBA", (width, height))
    left = 0
    for cell in cells:
        row.paste(cell, (left, (height - cell.height) // 2))
        left += cell.width + _GAP
    is_tiny = all(max(image.shape[:2]) <= _TINY for image in images)
    return _encode(row, is_tiny)


def _fit(image: np.ndarray, height: int) -> Image.Image:
    """Return the image in this height, or smaller if it would be too wide."""
    picture = Image.fromarray(image)
    scale = min(height / picture.height, _WIDEST * height / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return picture.resize(size, shown)


def _encode(picture: Image.Image, lossless: bool) -> bytes:
    file = io.BytesIO()
    if features.check("webp"):
        # lossless, method 0 takes a 25th of the time of 4, and a fifth more bytes
        method = 0 if lossless else 4
        picture.save(file, "WEBP", quality=_QUALITY, lossless=lossless, method=method)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def draw_frame(pixels: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), with a red frame along the inside of a box (y, x, height,
    width); the frame is a hundredth of the longer side wide, at least a pixel."""
    y, x, height, width = box
    framed = pixels.copy()
    line = max(1, round(max(pixels.shape[:2]) / 100))
    inside = pixels[y + line : y + height - line, x + line : x + width - line]
    framed[y : y + height, x : x + width] = _FRAME
    framed[y + line : y + height - line, x + line : x + width - line] = inside
    return framed


def paint_heat(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), in grey under the colours of a map, (h, w), whose smallest
    value is dark and whose largest is bright."""
    values = torch.from_numpy(heat)[None, None].float()
    spread = F.interpolate(values, size=pixels.shape[:2], mode="bilinear")[0, 0]
    low, high = spread.aminmax()
    spread = (spread - low) / (high - low).clamp(min=1e-30)
    colours = colormaps["inferno"](spread.numpy())[..., :3]
    grey = pixels.mean(-1, keepdims=True)
    return (0.4 * grey + 0.6 * 255 * colours).round().astype(np.uint8)
