"""The DALI graphs that execute the plan: read, decode, resize, flip, RandAugment, normalise, erase; and the evaluation's.

No operator in here is random: all that varies comes in per sample, packed into one integer and one float row, so a sample's
pixels do not depend on the batch it is in, on threads or on time. The same code builds for "cpu" and "gpu"; the rows stay on
the CPU. Parts that a plan never uses are left out of the graph: an operator costs about 10 us an iteration even when idle.

The noise of RandomErasing comes from a bank of normal numbers; a sample's key chooses its window in it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment import pack_ops, rand_augment
from fastdeit.philox import normal, random_words, uniform
from fastdeit.plan import Draws, PlanSpec

Source = Callable[[int], tuple[Any, ...]]
"""From the number of an iteration to its batch: paths as lists of uint8 arrays, then the rows that the graph takes."""

# columns of a sample's rows; RandAugment's follow
_START, _SHAPE, _FLIP, _ERASE_START, _ERASE_SHAPE, _NOISE = slice(0, 2), slice(2, 4), 4, slice(5, 7), slice(7, 9), slice(9, 11)
_INTS, _FILL = 11, slice(0, 3)
_WINDOWS = 257  # places for a noise window along each axis


@dataclass(frozen=True)
class PipelineOptions:
    """Where a pipeline runs, how far ahead, and what it delivers. Raises ValueError for an unknown device."""

    batch_size: int
    """The most images an iteration delivers."""
    mean: Sequence[float]
    """Of each channel, for values in 0..1, as `std`."""
    std: Sequence[float]
    device: str = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "gpu"):
            raise ValueError(f"device: got {self.device!r}, allowed is cpu, gpu")

    @property
    def dtype(self) -> types.DALIDataType:
        """What is delivered: float16 on a GPU, float32 on a CPU."""
        return types.FLOAT16 if self.device == "gpu" else types.FLOAT

    @property
    def dali(self) -> dict[str, Any]:
        """The arguments of nvidia.dali.Pipeline."""
        device_id = (self.device_id or 0) if self.device == "gpu" else None
        queue = {"batch_size": self.batch_size, "prefetch_queue_depth": self.prefetch}
        return {"num_threads": self.num_threads, "device_id": device_id, **queue}


def build_train_pipeline(source: Source, spec: PlanSpec, options: PipelineOptions) -> Pipeline:
    """A built pipeline whose output is images (B, 3, S, S), normalised and erased: float32 on "cpu", float16 on "gpu".

    source: paths and the rows of `pack_draws`.
    """
    pipeline = _train_graph(source, spec, options, **options.dali)
    pipeline.build()
    return pipeline


def build_eval_pipeline(source: Source, input_size: int, options: PipelineOptions) -> Pipeline:
    """A built pipeline whose output is images (B, 3, S, S), as of `build_train_pipeline`; source: paths and float32 (B, 4)
    windows of `centre_windows`."""
    pipeline = _eval_graph(source, input_size, options, **options.dali)
    pipeline.build()
    return pipeline


def pack_draws(draws: Draws, spec: PlanSpec) -> tuple[np.ndarray, ...]:
    """The rows that the training graph takes: int32 (B, columns), and float32 (B, columns) where it has a use for floats."""
    count = len(draws.image)
    noise = np.stack((draws.noise_key >> np.uint64(32), draws.noise_key & np.uint64(2**32 - 1)), 1) % np.uint64(_WINDOWS)
    ints = np.concatenate((draws.crop, draws.flip[:, None], draws.erase, noise), axis=1, dtype=np.int32, casting="unsafe")
    if not _has_floats(spec):
        return (ints,)
    op_ints, op_floats = pack_ops(draws, spec.input_size, spec.input_size)
    fill = noise_bank(spec.input_size)[:, noise[:, 0], noise[:, 1]].T if spec.remode == "rand" else np.zeros((count, 3))
    floats = np.concatenate((fill, op_floats), axis=1, dtype=np.float32, casting="unsafe")
    return np.concatenate((ints, op_ints), axis=1), floats


def centre_windows(sizes: np.ndarray, input_size: int, crop_pct: float) -> np.ndarray:
    """float32 (B, 4): y0, x0, y1, x1 in the stored image of what evaluation sees.

    sizes: (B, 2) height and width. The window that torchvision's Resize(int(input_size / crop_pct)) and CenterCrop keep,
    with their roundings, so that one resize of it is the same picture. Raises ValueError for a crop_pct outside (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct: got {crop_pct}, allowed is above 0 to 1")
    short = int(input_size / crop_pct)
    resized = short * sizes.astype(np.int64) // sizes.min(1, keepdims=True)
    start = np.rint((resized - input_size) / 2)
    window = np.stack((start, start + input_size), 1) * (sizes / resized)[:, None]
    return window.reshape(-1, 4).astype(np.float32)


@functools.lru_cache(maxsize=4)
def noise_bank(input_size: int) -> np.ndarray:
    """float32 (3, side, side): standard normal numbers, the same on every machine; side = input_size + 256."""
    side = input_size + _WINDOWS - 1
    draws = uniform(random_words(0, 0, np.arange(3 * side * side), purpose=0))
    bank = normal(draws[0], draws[1]).astype(np.float32).reshape(3, side, side)
    bank.flags.writeable = False
    return bank


def _has_floats(spec: PlanSpec) -> bool:
    return spec.ra_layers > 0 or (spec.reprob > 0 and spec.remode == "rand")


@pipeline_def(enable_conditionals=True)
def _train_graph(source: Source, spec: PlanSpec, options: PipelineOptions) -> DataNode:
    count = 3 if _has_floats(spec) else 2
    dtypes = [types.UINT8, types.INT32, types.FLOAT][:count]
    paths, ints, *floats = fn.external_source(source, num_outputs=count, dtype=dtypes, ndim=1)
    decoded = _decoded_window(fn.io.file.read(paths), ints[_START], ints[_SHAPE], options)
    images = _resized(decoded, spec.input_size)
    mirror = ints[_FLIP]
    if spec.ra_layers:
        images = fn.flip(images, horizontal=mirror)
        images = _augmented(images, ints[_INTS:], floats[0][_FILL.stop :], spec, options)
        mirror = 0
    if not spec.reprob:
        return _normalised(images, options, options.dtype, mirror)
    fill = floats[0][_FILL] if spec.remode == "rand" else None
    # neither erase nor arithmetic takes float16
    images = _erased(_normalised(images, options, types.FLOAT, mirror), ints, fill, spec)
    return fn.cast(images, dtype=options.dtype) if options.device == "gpu" else images


@pipeline_def
def _eval_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    paths, windows = fn.external_source(source, num_outputs=2, dtype=[types.UINT8, types.FLOAT], ndim=1)
    decoded = fn.decoders.image(fn.io.file.read(paths), **_decoding(options))
    images = _resized(decoded, input_size, roi_start=windows[0:2], roi_end=windows[2:4])
    return _normalised(images, options, options.dtype)


def _decoding(options: PipelineOptions) -> dict[str, Any]:
    """Stored pixels, without EXIF rotation."""
    # the hardware engine's pixels differ from the CUDA decoder's, and which one a sample meets depends on its batch
    place = {"device": "mixed", "hw_decoder_load": 0.0} if options.device == "gpu" else {"device": "cpu"}
    return {"output_type": types.RGB, "adjust_orientation": False, **place}


def _decoded_window(encoded: DataNode, start: DataNode, shape: DataNode, options: PipelineOptions) -> DataNode:
    return fn.decoders.image_slice(encoded, start=start, shape=shape, axis_names="HW", **_decoding(options))


def _resized(images: DataNode, input_size: int, **roi: DataNode) -> DataNode:
    return fn.resize(images, size=[input_size, input_size], interp_type=types.INTERP_CUBIC, antialias=True, **roi)


def _augmented(images: DataNode, ints: DataNode, floats: DataNode, spec: PlanSpec, options: PipelineOptions) -> DataNode:
    # timm fills with the mean colour
    fill = [min(255, round(255 * value)) for value in options.mean]
    side = spec.input_size
    return rand_augment(images, ints, floats, layers=spec.ra_layers, height=side, width=side, fill=fill)


def _normalised(images: DataNode, options: PipelineOptions, dtype: types.DALIDataType, mirror: DataNode | int = 0) -> DataNode:
    """uint8 (S, S, 3) to floating point (3, S, S), mirrored on the way."""
    mean, std = ([255 * value for value in values] for values in (options.mean, options.std))
    return fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, std=std, dtype=dtype, output_layout="CHW")


def _erased(images: DataNode, ints: DataNode, fill: DataNode | None, spec: PlanSpec) -> DataNode:
    start, shape = ints[_ERASE_START], ints[_ERASE_SHAPE]
    box = {"anchor": fn.cast(start, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
    if spec.remode != "pixel":
        return fn.erase(images, fill_value=0.0 if fill is None else fill, **box)
    if ints[_ERASE_SHAPE.start] > 0:
        images = fn.erase(images, **box) + _noise(images, start, shape, ints[_NOISE], spec.input_size)
    return images


def _noise(images: DataNode, start: DataNode, shape: DataNode, place: DataNode, side: int) -> DataNode:
    """Normal numbers in the box, zero around it."""
    bank = types.Constant(noise_bank(side), device=images.device, layout="CHW")
    noise = fn.slice(bank, start=place, shape=shape, axis_names="HW")
    return fn.slice(noise, start=-start, shape=[side, side], axis_names="HW", out_of_bounds_policy="pad")
