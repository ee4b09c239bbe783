"""The DALI graphs that execute the plan (read, decode, resize, flip, augment, normalise, erase),
and those of evaluation.

No operator in here is random: all that varies is an input, one row of integers and one of floats
for each sample, so a sample's pixels do not depend on the batch it is in, on threads or on time.
There are two backends with one interface:

exact: what follows the decoder is one compiled operator on the CPU, bit-equal to PIL and timm
(data/augment/exact.py); or the graph only decodes, and kernels do the same on the GPU
(data/device/). native: DALI's own operators, on the CPU or the GPU, close to PIL
(data/augment/native.py). The graph has no operator that the plan never uses: even an idle one costs
about 10 us an iteration.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
from fastdeit.data.graphs.copies import share_windows
from fastdeit.data.graphs.eval_crop import EvalCrop, place_crop
from fastdeit.data.graphs.generated import private_code
from fastdeit.data.graphs.options import DECODERS, PipelineOptions
from fastdeit.data.graphs.windows import part_to_read, place_in
from fastdeit.plan.operations import mean_colour
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

_INTS = (types.INT32, 1)
_FLOATS = (types.FLOAT64, 1)
Source = Callable[[int], tuple[Any, ...]]
"""A function from DALI's number of an iteration to its batch: paths or encoded images as uint8
arrays, then the rows that the graph takes."""


def build_train_pipeline(source: Source, spec: PlanSpec, options: PipelineOptions) -> Pipeline:
    """Build a pipeline whose output is images (B, 3, S, S), normalised and erased: float32 on
    "cpu", float16 on "gpu". With kernels the output is decoded windows, uint8 (h, w, 3), on the
    device.

    source: gives paths or encoded images, and the rows of `pack_draws`; with kernels, the windows
    instead of these rows, int32 (G, 4) as y, x, height, width.
    """
    if options.uses_kernels:
        return _built(_windows_graph(source, options, **options.dali))
    if options.backend == "exact":
        graph = _copies_graph if spec.repeats > 1 else _exact_graph
        return _built(graph(source, spec.input_size, options, **options.dali))
    return _built(_native_graph(source, spec, options, **options.dali))


def build_eval_pipeline(source: Source, crop: EvalCrop, options: PipelineOptions) -> Pipeline:
    """Build a pipeline whose output is images (B, 3, S, S), as that of `build_train_pipeline`.

    source: gives paths or encoded images, and the rows of `pack_eval`.
    """
    if options.backend == "exact":
        return _built(_exact_graph(source, crop.size, options, **options.dali))
    return _built(_native_eval_graph(source, crop, options, **options.dali))


def decode_alone(encoded: Sequence[np.ndarray] | np.ndarray, feeds_paths: bool) -> None:
    """Decode one batch, as the source gives it, in a pipeline of its own.

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
    """Return the rows that the training graph takes, (B, columns) each or (B,): the window to
    decode, integers, and floats if it uses any; for copies that share a window, see
    `_copies_graph`. With kernels, return the rows that the kernels take, `pack_changes`.

    draws: the samples of one batch or of several, each with `options.batch_size` samples.
    """
    if options.uses_kernels:
        return pack_changes(draws)
    if options.backend == "native":
        return draws.crop, *pack_native(draws, spec)
    windows = draws.crop
    if spec.simple_crop:
        windows = part_to_read(draws.crop, draws.resize, spec.input_size)
    sharing: tuple[np.ndarray, ...] = ()
    if spec.repeats > 1:
        windows, first = share_windows(draws.image_index, windows, options.batch_size)
        decodes = first == np.arange(len(first)) % options.batch_size
        sharing = (decodes, first)
    region = place_in(windows, draws.crop)
    return windows, *sharing, *pack_exact(draws, spec, options.mean, options.std, region)


def pack_eval(
    sizes: np.ndarray, crop: EvalCrop, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """Return the rows that the evaluation graph takes for images of `sizes`, int (B, 2) height and
    width. Raises ValueError for a crop that the backend cannot do."""
    crop.check(options.backend)
    resize = place_crop(sizes, crop)
    if options.backend == "exact":
        whole = np.concatenate((np.zeros_like(sizes), sizes), axis=1, dtype=np.int32)
        windows = part_to_read(whole, resize, crop.size, crop.interpolation)
        rows = pack_windows(
            resize,
            options.mean,
            options.std,
            interpolation=crop.interpolation,
            fill=mean_colour(options.mean) if crop.mode == "border" else (0, 0, 0),
            region=place_in(windows, whole),
        )
        return windows, *rows
    start, resized = resize[:, 2:], resize[:, :2]
    window = np.stack((start, start + crop.size), 1) * (sizes / resized)[:, None]
    return (window.reshape(-1, 4).astype(np.float32),)


class _Encoded(NamedTuple):
    """Images as the source gives them, and the height and width that each must have."""

    fed: DataNode
    size: DataNode | None


def _external(
    source: Source, options: PipelineOptions, *rows: tuple[types.DALIDataType, int]
) -> tuple[_Encoded, list[DataNode]]:
    """Return the encoded images, and the rows, which have the given types and dimensions."""
    sizes = ((types.INT32, 1),) if options.knows_sizes else ()
    inputs = [(types.UINT8, 1), *sizes, *rows]
    # without a copy: the loader holds what it fed until DALI has made the batch
    fed, *nodes = fn.external_source(
        source,
        num_outputs=len(inputs),
        dtype=[dtype for dtype, _ in inputs],
        ndim=[ndim for _, ndim in inputs],
        no_copy=True,
    )
    size = nodes.pop(0) if options.knows_sizes else None
    return _Encoded(fed, size), nodes


def _read(encoded: _Encoded, options: PipelineOptions) -> DataNode:
    """Return the bytes of the images, which must have the size of the index."""
    data = encoded.fed
    if options.feeds_paths:
        # a disk that fails while a file is mapped to memory would kill the process
        data = fn.io.file.read(data, dont_use_mmap=True)
    return data if encoded.size is None else _of_size(data, encoded.size)


def _of_size(encoded: DataNode, size: DataNode) -> DataNode:
    """Return the images; fail if the header of one has another size than the index, so that a
    decompression bomb is not decoded.

    The decoder must not be what fails: DALI 2.4 ends it while threads still prepare other images.
    """
    header = fn.peek_image_shape(encoded, adjust_orientation=False)
    differs = (header[0] != size[0]) | (header[1] != size[1])
    beyond = fn.cast(encoded.shape()[0], dtype=types.INT32) + fn.cast(differs, dtype=types.INT32)
    return fn.slice(encoded, start=[0], shape=beyond, axes=[0], out_of_bounds_policy="error")


@pipeline_def
def _exact_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    encoded, (window, ints, floats) = _external(source, options, _INTS, _INTS, _FLOATS)
    images = _decoded_window(encoded, window, options)
    return _exact_output(images, ints, floats, input_size, options)


@private_code()
@pipeline_def(enable_conditionals=True)
def _copies_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    """Define a graph that decodes a window once for all samples of the batch that are cut from it.

    Two inputs of each sample: `decodes`, whether it decodes its window; `first`, the place in the
    batch of the sample that does.
    """
    encoded, (window, decodes, first, ints, floats) = _external(
        source, options, _INTS, (types.BOOL, 0), (types.INT32, 0), _INTS, _FLOATS
    )
    if decodes:
        decoded = _decoded_window(encoded, window, options)
    else:
        # a tensor for the other branch must have as many dimensions
        decoded = types.Constant(np.zeros((1, 1, 1), np.uint8), layout="HWC", device="cpu")
    images = fn.permute_batch(decoded, indices=first)
    return _exact_output(images, ints, floats, input_size, options)


def _exact_output(
    images: DataNode, ints: DataNode, floats: DataNode, size: int, options: PipelineOptions
) -> DataNode:
    images = exact(images, ints, floats, size=size)
    return _as_output(images.gpu() if options.device == "gpu" else images, options)


@pipeline_def
def _windows_graph(source: Source, options: PipelineOptions) -> DataNode:
    encoded, (window,) = _external(source, options, _INTS)
    return _on_device(_decoded_window(encoded, window, options), options)


@private_code()
@pipeline_def(enable_conditionals=True)
def _native_graph(source: Source, spec: PlanSpec, options: PipelineOptions) -> DataNode:
    rows = [_INTS, _INTS]
    if has_floats(spec):
        rows.append((types.FLOAT, 1))
    encoded, (window, ints, *floats) = _external(source, options, *rows)
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
    encoded, (windows,) = _external(source, options, (types.FLOAT, 1))
    decoded = fn.decoders.image(_read(encoded, options), **_decoding(options))
    images = resize_region(
        _on_device(decoded, options),
        crop.size,
        windows[0:2],
        windows[2:4],
        NATIVE_FILTERS[crop.interpolation],
    )
    return _normalised(images, options, options.dtype)


@pipeline_def
def _decode_graph(source: Source, options: PipelineOptions) -> DataNode:
    encoded, _ = _external(source, options)
    return fn.decoders.image(_read(encoded, options), **_decoding(options))


def _decoding(options: PipelineOptions) -> dict[str, Any]:
    """Return the decoder's arguments: stored pixels, without EXIF rotation."""
    return {"output_type": types.RGB, "adjust_orientation": False, **DECODERS[options.decoder]}


def _decoded_window(encoded: _Encoded, window: DataNode, options: PipelineOptions) -> DataNode:
    place = {"start": window[0:2], "shape": window[2:4], "axis_names": "HW"}
    return fn.decoders.image_slice(_read(encoded, options), **place, **_decoding(options))


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
