"""The DALI graphs that execute the plan (read, decode, resize, flip, augment, normalise, erase),
and those of evaluation.

No operator in here is random: all that varies comes in per sample, packed into one integer and one
float row, so a sample's pixels do not depend on the batch it is in, on threads or on time. Two
backends, one interface:

exact: what follows the decoder is one compiled operator on the CPU, bit-equal to PIL and timm
(data/augment/exact.py); or the graph only decodes, and kernels do the same on the GPU
(data/device/). native: DALI's own operators, on the CPU or the GPU, close to PIL
(data/augment/native.py). The graph does not have parts that a plan never uses: an operator costs
about 10 us an iteration even when idle.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment.exact import exact, pack_exact, pack_windows
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
from fastdeit.data.device.rows import pack_changes
from fastdeit.data.graphs.eval_crop import EvalCrop, place_crop
from fastdeit.data.graphs.options import DECODERS, PipelineOptions
from fastdeit.plan.operations import mean_colour
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

Source = Callable[[int], tuple[Any, ...]]
"""From DALI's number of an iteration to its batch: paths or encoded images as uint8 arrays, then
the rows that the graph takes."""


def build_train_pipeline(source: Source, spec: PlanSpec, options: PipelineOptions) -> Pipeline:
    """Build a pipeline whose output is images (B, 3, S, S), normalised and erased: float32 on
    "cpu", float16 on "gpu". With kernels, it is decoded windows, uint8 (h, w, 3), on the device.

    source: paths or encoded images, and the rows of `pack_draws`; with kernels, the windows, int32
    (G, 4) as y, x, height, width.
    """
    if options.uses_kernels:
        return _built(_windows_graph(source, options, **options.dali))
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
    integers, and floats if it uses any. With kernels, those of `pack_changes`."""
    if options.uses_kernels:
        return pack_changes(draws)
    if options.backend == "exact":
        return draws.crop, *pack_exact(draws, spec, options.mean, options.std)
    return draws.crop, *pack_native(draws, spec)


def pack_eval(
    sizes: np.ndarray, crop: EvalCrop, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """Return the rows that the evaluation graph takes for images of `sizes`, int (B, 2) height and
    width. Raises ValueError for a crop that the backend cannot do."""
    crop.check(options.backend)
    resize = place_crop(sizes, crop)
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


@pipeline_def
def _windows_graph(source: Source, options: PipelineOptions) -> DataNode:
    encoded, window = _external(source, options, types.INT32)
    return _on_device(_decoded_window(encoded, window, options), options)


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
