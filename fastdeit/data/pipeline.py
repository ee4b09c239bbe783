"""The DALI graphs that execute the plan (read, decode, resize, flip, augment, normalise, erase),
and those of evaluation.

No operator in here is random: all that varies comes in per sample, packed into one integer and one
float row, so a sample's pixels do not depend on the batch it is in, on threads or on time. Two
backends, one interface:

exact: what follows the decoder is one compiled operator on the CPU, bit-equal to PIL and timm
(data/augment/exact.py). native: DALI's own operators, on the CPU or the GPU, close to PIL
(data/augment/native.py). The graph does not have parts that a plan never uses: an operator costs
about 10 us an iteration even when idle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from fastdeit.config.parse import require, require_value
from fastdeit.data.augment.exact import exact, mean_colour, pack_exact, pack_windows
from fastdeit.data.augment.native import (
    FILTERS as NATIVE_FILTERS,
)
from fastdeit.data.augment.native import (
    apply_layers,
    crop_and_flip,
    erase,
    has_floats,
    pack_native,
    resize_region,
)
from fastdeit.data.augment.resize import FILTERS
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

Source = Callable[[int], tuple[Any, ...]]
"""From DALI's number of an iteration to its batch: paths or encoded images as uint8 arrays, then
the rows that the graph takes."""

BACKENDS = ("exact", "native")
CROP_MODES = ("center", "squash", "border")
DECODERS: dict[str, dict[str, Any]] = {
    "cpu": {"device": "cpu"},
    "mixed": {"device": "mixed", "hw_decoder_load": 0.0},
    "hardware": {"device": "mixed", "hw_decoder_load": 1.0},
}
"""Where images are decoded. The GPU's own JPEG engine differs from its CUDA decoder, and a share
between them would make a sample's pixels depend on its batch: each decoder uses one of them for
all."""


@dataclass(frozen=True)
class PipelineOptions:
    """Settings of a pipeline: device, prefetch and output.

    Raises ValueError for an unknown name.
    """

    mean: Sequence[float]
    """Of each channel, for values in 0..1, as `std`."""
    std: Sequence[float]
    batch_size: int = 1
    """Largest batch; the loaders set it, and the last two fields."""
    device: str = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    backend: str = "exact"
    decoder: str = "cpu"
    feeds_paths: bool = True
    """True: the source gives paths of files; False: encoded images."""
    knows_sizes: bool = False
    """True: the source gives, right after the images, int32 (B, 2): the height and width that
    each must have."""

    def __post_init__(self) -> None:
        choices = {"device": ("cpu", "gpu"), "backend": BACKENDS, "decoder": tuple(DECODERS)}
        for name, allowed in choices.items():
            value = getattr(self, name)
            require_value(value in allowed, name, value, f"one of {', '.join(allowed)}")
        uses_gpu = self.device == "gpu" and self.backend == "native"
        allowed_decoder = f"cpu with backend {self.backend} on a {self.device}"
        require_value(self.decoder == "cpu" or uses_gpu, "decoder", self.decoder, allowed_decoder)

    def describe(self) -> str:
        """Return what decides the pixels, in words."""
        return f"{self.backend} backend, {self.decoder} decoder"

    @property
    def dtype(self) -> types.DALIDataType:
        """Return the type of the output: float16 on a GPU, float32 on a CPU."""
        return types.FLOAT16 if self.device == "gpu" else types.FLOAT

    @property
    def dali(self) -> dict[str, Any]:
        """Return the arguments of nvidia.dali.Pipeline."""
        device_id = (self.device_id or 0) if self.device == "gpu" else None
        queue = {"batch_size": self.batch_size, "prefetch_queue_depth": self.prefetch}
        return {"num_threads": self.num_threads, "device_id": device_id, **queue}


class EvalCrop(NamedTuple):
    """The square that a model sees of an image in evaluation. Source: timm 1.0.31,
    data/transforms_factory.py, transforms_imagenet_eval."""

    size: int
    """Its side in pixels."""
    crop_pct: float
    """size / crop_pct is the side that the image is resized to before the crop."""
    interpolation: str = "bicubic"
    """Filter of the resize, one of FILTERS."""
    mode: str = "center"
    """One of CROP_MODES. center: the short side is resized, and the centre cropped; squash: both
    sides are, without regard to their ratio; border: the long side is, and what the image lacks is
    filled with the mean colour."""

    def check(self, backend: str) -> None:
        """Raise ValueError, which names the argument, for what the backend cannot do."""
        require(0 < self.crop_pct <= 2, "eval_crop_ratio", self.crop_pct, "above 0, at most 2")
        filters = FILTERS if backend == "exact" else tuple(NATIVE_FILTERS)
        allowed = f"one of {', '.join(filters)} with the augment backend {backend}"
        require(self.interpolation in filters, "interpolation", self.interpolation, allowed)
        require(self.mode in CROP_MODES, "crop_mode", self.mode, f"one of {', '.join(CROP_MODES)}")
        allowed = "exact where an image is padded (crop mode border, or a crop ratio above 1)"
        pads = self.mode == "border" or self.crop_pct > 1
        require(backend == "exact" or not pads, "augment_backend", backend, allowed)


def build_train_pipeline(source: Source, spec: PlanSpec, options: PipelineOptions) -> Pipeline:
    """Build a pipeline whose output is images (B, 3, S, S), normalised and erased: float32 on
    "cpu", float16 on "gpu".

    source: paths or encoded images, and the rows of `pack_draws`.
    """
    if options.backend == "exact":
        return _built(_exact_graph(source, spec.input_size, options, **options.dali))
    return _built(_native_graph(source, spec, options, **options.dali))


def build_eval_pipeline(source: Source, crop: EvalCrop, options: PipelineOptions) -> Pipeline:
    """Build a pipeline whose output is images (B, 3, S, S), as of `build_train_pipeline`.

    source: paths or encoded images, and the rows of `pack_eval`.
    """
    if options.backend == "exact":
        return _built(_exact_graph(source, crop.size, options, **options.dali))
    return _built(_native_eval_graph(source, crop, options, **options.dali))


def decode_alone(encoded: Sequence[np.ndarray] | np.ndarray, feeds_paths: bool) -> None:
    """Decode one batch (as the source gives it) by itself.

    Raises RuntimeError with DALI's message if that fails.
    """
    count = len(encoded)
    options = PipelineOptions(
        (0.0,), (1.0,), batch_size=count, num_threads=1, prefetch=1, feeds_paths=feeds_paths
    )
    _built(_decode_graph(lambda i: (encoded,), options, **options.dali)).run()


def _built(pipeline: Pipeline) -> Pipeline:
    pipeline.build()
    return pipeline


def pack_draws(
    draws: SampleParams, spec: PlanSpec, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """Return the rows that the training graph takes, (B, columns) each: the window to decode,
    integers, and floats if it uses any."""
    if options.backend == "exact":
        return draws.crop, *pack_exact(draws, spec, options.mean, options.std)
    return draws.crop, *pack_native(draws, spec)


def pack_eval(
    sizes: np.ndarray, crop: EvalCrop, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """Return the rows that the evaluation graph takes for images of `sizes`, int (B, 2) height and
    width. Raises ValueError for a crop that the backend cannot do."""
    crop.check(options.backend)
    resize = _place_crop(sizes, crop)
    if options.backend == "exact":
        whole = np.concatenate((np.zeros_like(sizes), sizes), axis=1, dtype=np.int32)
        fill = mean_colour(options.mean) if crop.mode == "border" else (0, 0, 0)
        rows = pack_windows(
            resize, options.mean, options.std, interpolation=crop.interpolation, fill=fill
        )
        return whole, *rows
    start, resized = resize[:, 2:], resize[:, :2]
    window = np.stack((start, start + crop.size), 1) * (sizes / resized)[:, None]
    return (window.reshape(-1, 4).astype(np.float32),)


def _place_crop(sizes: np.ndarray, crop: EvalCrop) -> np.ndarray:
    """Return int32 (B, 4): height and width after the resize, y and x of the crop, which are
    negative where the image is padded (torchvision's Resize and CenterCrop; timm's ResizeKeepRatio
    and CenterCropOrPad)."""
    resized = _resized(sizes.astype(np.int64), int(crop.size / crop.crop_pct), crop.mode)
    cropped = np.rint((resized - crop.size) / 2).astype(np.int64)
    padded = -((crop.size - resized) // 2)
    corner = np.where(resized < crop.size, padded, cropped)
    return np.concatenate((resized, corner), axis=1).astype(np.int32)


def _resized(sizes: np.ndarray, side: int, mode: str) -> np.ndarray:
    """Return int64 (B, 2): height and width of images of int64 `sizes` after the resize."""
    if mode == "squash":
        return np.full_like(sizes, side)
    if mode == "border":
        ratio = (sizes / side).max(1, keepdims=True)
        return np.maximum(np.rint(sizes / ratio), 1).astype(np.int64)
    return side * sizes // sizes.min(1, keepdims=True)


def _external(
    source: Source, options: PipelineOptions, *dtypes: types.DALIDataType
) -> list[DataNode]:
    """Return the encoded images, then the rows of the given types."""
    dtypes = (types.INT32, *dtypes) if options.knows_sizes else dtypes
    # without a copy: the loader keeps what it fed until the batch is out
    encoded, *rows = fn.external_source(
        source, num_outputs=1 + len(dtypes), dtype=[types.UINT8, *dtypes], ndim=1, no_copy=True
    )
    if options.feeds_paths:
        # a disk that fails under a memory map would kill the process
        encoded = fn.io.file.read(encoded, dont_use_mmap=True)
    if options.knows_sizes:
        size, *rows = rows
        encoded = _of_size(encoded, size)
    return [encoded, *rows]


def _of_size(encoded: DataNode, size: DataNode) -> DataNode:
    """Return the images whose header has the size that the index has, and empty ones for the
    others: these fail, and a decompression bomb is not decoded."""
    header = fn.peek_image_shape(encoded, adjust_orientation=False)
    same = (header[0] == size[0]) & (header[1] == size[1])
    return encoded[: encoded.shape()[0] * fn.cast(same, dtype=types.INT64)]


@pipeline_def
def _exact_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    encoded, window, ints, floats = _external(
        source, options, types.INT32, types.INT32, types.FLOAT64
    )
    images = exact(_decoded_window(encoded, window, options), ints, floats, size=input_size)
    return _as_output(images.gpu() if options.device == "gpu" else images, options)


@pipeline_def(enable_conditionals=True)
def _native_graph(source: Source, spec: PlanSpec, options: PipelineOptions) -> DataNode:
    dtypes = [types.INT32, types.INT32]
    if has_floats(spec):
        dtypes.append(types.FLOAT)
    encoded, window, ints, *floats = _external(source, options, *dtypes)
    images = _on_device(_decoded_window(encoded, window, options), options)
    images = crop_and_flip(images, ints, spec)
    if spec.layers:
        images = apply_layers(images, ints, floats[0], spec, mean_colour(options.mean))
    if not spec.reprob:
        return _normalised(images, options, options.dtype)
    # neither erase nor arithmetic takes float16
    images = erase(_normalised(images, options, types.FLOAT), ints, floats, spec)
    return _as_output(images, options)


@pipeline_def
def _native_eval_graph(source: Source, crop: EvalCrop, options: PipelineOptions) -> DataNode:
    encoded, windows = _external(source, options, types.FLOAT)
    decoded = _on_device(fn.decoders.image(encoded, **_decoding(options)), options)
    images = resize_region(
        decoded, crop.size, windows[0:2], windows[2:4], NATIVE_FILTERS[crop.interpolation]
    )
    return _normalised(images, options, options.dtype)


@pipeline_def
def _decode_graph(source: Source, options: PipelineOptions) -> DataNode:
    (encoded,) = _external(source, options)
    return fn.decoders.image(encoded, **_decoding(options))


def _decoding(options: PipelineOptions) -> dict[str, Any]:
    """Return the decoder's arguments: stored pixels, without EXIF rotation."""
    return {"output_type": types.RGB, "adjust_orientation": False, **DECODERS[options.decoder]}


def _decoded_window(encoded: DataNode, window: DataNode, options: PipelineOptions) -> DataNode:
    place = {"start": window[0:2], "shape": window[2:4], "axis_names": "HW"}
    return fn.decoders.image_slice(encoded, **place, **_decoding(options))


def _on_device(images: DataNode, options: PipelineOptions) -> DataNode:
    return images.gpu() if options.device == "gpu" and options.decoder == "cpu" else images


def _as_output(images: DataNode, options: PipelineOptions) -> DataNode:
    """Return float32 images as `options.dtype`."""
    return images if options.dtype == types.FLOAT else fn.cast(images, dtype=options.dtype)


def _normalised(images: DataNode, options: PipelineOptions, dtype: types.DALIDataType) -> DataNode:
    """Return floating-point images (3, S, S) from uint8 (S, S, 3)."""
    mean = [255 * value for value in options.mean]
    std = [255 * value for value in options.std]
    return fn.crop_mirror_normalize(images, mean=mean, std=std, dtype=dtype, output_layout="CHW")
