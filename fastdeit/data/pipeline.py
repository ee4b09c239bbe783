"""The DALI graphs that execute the plan: read, decode, resize, flip, augment, normalise, erase; and
the evaluation's.

No operator in here is random: all that varies comes in per sample, packed into one integer and one
float row, so a sample's pixels do not depend on the batch it is in, on threads or on time. Two
backends, one interface:

exact: what follows the decoder is one compiled operator on the CPU, bit-equal to PIL and timm
(data/augment/exact.py). native: DALI's own operators, on the CPU or the GPU, close to PIL
(data/augment/native.py). Parts that a plan never uses are left out of the graph: an operator costs
about 10 us an iteration even when idle. The noise of RandomErasing comes from a bank of normal
numbers; a sample's key chooses its window in it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment.exact import exact, mean_colour, pack_exact, pack_windows
from fastdeit.data.augment.native import native_window, pack_ops, rand_augment
from fastdeit.plan.philox import normal, random_words, uniform
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

Source = Callable[[int], tuple[Any, ...]]
"""From the number of an iteration to its batch: paths or encoded images as uint8 arrays, then the
rows that the graph takes."""

BACKENDS = ("exact", "native")
DECODERS: dict[str, dict[str, Any]] = {
    "cpu": {"device": "cpu"},
    "mixed": {"device": "mixed", "hw_decoder_load": 0.0},
    "hardware": {"device": "mixed", "hw_decoder_load": 1.0},
}
"""Where images are decoded. The GPU's own JPEG engine differs from its CUDA decoder, and a share
between them would make a sample's pixels depend on its batch: each decoder uses one of them for
all."""

# columns of a native sample's rows; the operations' follow
_FLIP, _ERASE_START, _ERASE_SHAPE, _NOISE, _RESIZE = (
    0,
    slice(1, 3),
    slice(3, 5),
    slice(5, 7),
    slice(7, 11),
)
_REGION, _INTS, _FILL = slice(11, 15), 15, slice(0, 3)
_WINDOWS = 257  # places for a noise window along each axis


@dataclass(frozen=True)
class PipelineOptions:
    """Where a pipeline runs, how far ahead, and what it delivers. Raises ValueError for an unknown
    name."""

    mean: Sequence[float]
    """Of each channel, for values in 0..1, as `std`."""
    std: Sequence[float]
    batch_size: int = 1
    """The most images an iteration delivers; the loaders put in their own, and `feeds_paths`."""
    device: str = "cpu"
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    backend: str = "exact"
    decoder: str = "cpu"
    feeds_paths: bool = True
    """Whether the source gives paths of files, else encoded images."""
    knows_sizes: bool = False
    """Whether the source gives, right after the images, int32 (B, 2): the height and width that
    each must have."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("device", ("cpu", "gpu")),
            ("backend", BACKENDS),
            ("decoder", tuple(DECODERS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, allowed is {', '.join(allowed)}"
                )
        if self.decoder != "cpu" and (self.device == "cpu" or self.backend == "exact"):
            raise ValueError(
                f"decoder: got {self.decoder!r}, allowed is cpu with backend {self.backend} on a {self.device}"
            )

    def describe(self) -> str:
        """What decides the pixels, in words."""
        return f"{self.backend} backend, {self.decoder} decoder"

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
    """A built pipeline whose output is images (B, 3, S, S), normalised and erased: float32 on
    "cpu", float16 on "gpu".

    source: paths or encoded images, and the rows of `pack_draws`.
    """
    if options.backend == "exact":
        return _built(_exact_graph(source, spec.input_size, options, **options.dali))
    return _built(_native_graph(source, spec, options, **options.dali))


def build_eval_pipeline(source: Source, input_size: int, options: PipelineOptions) -> Pipeline:
    """A built pipeline whose output is images (B, 3, S, S), as of `build_train_pipeline`.

    source: paths or encoded images, and the rows of `pack_eval`.
    """
    graph = _exact_graph if options.backend == "exact" else _native_eval_graph
    return _built(graph(source, input_size, options, **options.dali))


def decode_alone(encoded: Sequence[np.ndarray] | np.ndarray, feeds_paths: bool) -> None:
    """Decodes one batch (as the source gives it) by itself. Raises RuntimeError with DALI's message
    if that fails."""
    options = PipelineOptions(
        (0.0,), (1.0,), batch_size=len(encoded), num_threads=1, prefetch=1, feeds_paths=feeds_paths
    )
    _built(_decode_graph(lambda i: (encoded,), options, **options.dali)).run()


def _built(pipeline: Pipeline) -> Pipeline:
    pipeline.build()
    return pipeline


def pack_draws(
    draws: SampleParams, spec: PlanSpec, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """The rows that the training graph takes, (B, columns) each: the window to decode, integers,
    and floats if it uses any."""
    if options.backend == "exact":
        return draws.crop, *pack_exact(draws, spec, options.mean, options.std)
    return draws.crop, *_pack_native(draws, spec)


def pack_eval(
    sizes: np.ndarray, input_size: int, crop_pct: float, options: PipelineOptions
) -> tuple[np.ndarray, ...]:
    """The rows that the evaluation graph takes for images of `sizes`, int (B, 2) height and width.

    crop_pct: input_size / the short side that an image is resized to (bicubic) before its centre is
    cropped. Raises ValueError for a crop_pct outside (0, 1].
    """
    resize = _centre_resize(sizes, input_size, crop_pct)
    if options.backend == "exact":
        whole = np.concatenate((np.zeros_like(sizes), sizes), axis=1, dtype=np.int32)
        return whole, *pack_windows(resize, options.mean, options.std)
    start, resized = resize[:, 2:], resize[:, :2]
    window = np.stack((start, start + input_size), 1) * (sizes / resized)[:, None]
    return (window.reshape(-1, 4).astype(np.float32),)


def _centre_resize(sizes: np.ndarray, input_size: int, crop_pct: float) -> np.ndarray:
    """int32 (B, 4): height and width after the resize, y and x of the centre: torchvision's Resize
    and CenterCrop."""
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct: got {crop_pct}, allowed is above 0 to 1")
    short = int(input_size / crop_pct)
    resized = short * sizes.astype(np.int64) // sizes.min(1, keepdims=True)
    return np.concatenate(
        (resized, np.rint((resized - input_size) / 2)), axis=1, dtype=np.int32, casting="unsafe"
    )


def _pack_native(draws: SampleParams, spec: PlanSpec) -> tuple[np.ndarray, ...]:
    noise = np.stack(
        (draws.noise_key >> np.uint64(32), draws.noise_key & np.uint64(2**32 - 1)), 1
    ) % np.uint64(_WINDOWS)
    height, width = draws.crop[:, 2], draws.crop[:, 3]
    region = np.stack(
        (0 * height, draws.flip * width, height, ~draws.flip * width), 1
    )  # of the crop; right to left if flipped
    parts = (draws.flip[:, None], draws.erase, noise, draws.resize, region)
    ints = np.concatenate(parts, axis=1, dtype=np.int32, casting="unsafe")
    if not _has_floats(spec):
        return (ints,)
    op_ints, op_floats = pack_ops(draws, spec.input_size, spec.input_size)
    bank = noise_bank(spec.input_size)
    fill = (
        bank[:, noise[:, 0], noise[:, 1]].T if spec.remode == "rand" else np.zeros((len(ints), 3))
    )
    floats = np.concatenate((fill, op_floats), axis=1, dtype=np.float32, casting="unsafe")
    return np.concatenate((ints, op_ints), axis=1), floats


@functools.lru_cache(maxsize=4)
def noise_bank(input_size: int) -> np.ndarray:
    """float32 (3, side, side): standard normal numbers, the same on every machine; side =
    input_size + 256."""
    side = input_size + _WINDOWS - 1
    draws = uniform(random_words(0, 0, np.arange(3 * side * side), purpose=0))
    bank = normal(draws[0], draws[1]).astype(np.float32).reshape(3, side, side)
    bank.flags.writeable = False
    return bank


def _has_floats(spec: PlanSpec) -> bool:
    return spec.layers > 0 or (spec.reprob > 0 and spec.remode == "rand")


def _external(
    source: Source, options: PipelineOptions, *dtypes: types.DALIDataType
) -> list[DataNode]:
    """Encoded images, then the rows of the given types."""
    dtypes = (types.INT32, *dtypes) if options.knows_sizes else dtypes
    # without a copy: the loader holds on to what it gave until the batch is out
    encoded, *rows = fn.external_source(
        source, num_outputs=1 + len(dtypes), dtype=[types.UINT8, *dtypes], ndim=1, no_copy=True
    )
    if options.feeds_paths:
        encoded = fn.io.file.read(
            encoded, dont_use_mmap=True
        )  # a disk that fails under a memory map would kill the process
    return [_of_size(encoded, rows.pop(0)), *rows] if options.knows_sizes else [encoded, *rows]


def _of_size(encoded: DataNode, size: DataNode) -> DataNode:
    """The images whose header tells the size that the index has, the others empty: they fail, and a
    bomb is not decoded."""
    told = fn.peek_image_shape(encoded, adjust_orientation=False)
    same = (told[0] == size[0]) & (told[1] == size[1])
    return encoded[: encoded.shape()[0] * fn.cast(same, dtype=types.INT64)]


@pipeline_def
def _exact_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    encoded, window, ints, floats = _external(
        source, options, types.INT32, types.INT32, types.FLOAT64
    )
    images = exact(_decoded_window(encoded, window, options), ints, floats, size=input_size)
    return _delivered(images.gpu() if options.device == "gpu" else images, options)


@pipeline_def(enable_conditionals=True)
def _native_graph(source: Source, spec: PlanSpec, options: PipelineOptions) -> DataNode:
    dtypes = [types.INT32, types.INT32, types.FLOAT]
    encoded, window, ints, *floats = _external(
        source, options, *dtypes[: 3 if _has_floats(spec) else 2]
    )
    images = _on_device(_decoded_window(encoded, window, options), options)
    if spec.simple_crop:
        images = fn.flip(
            native_window(images, ints[_RESIZE], spec.input_size), horizontal=ints[_FLIP]
        )
    else:
        # a region whose end lies before its start is mirrored
        region = fn.cast(ints[_REGION], dtype=types.FLOAT)
        images = _resized(images, spec.input_size, roi_start=region[0:2], roi_end=region[2:4])
    if spec.layers:
        images = _augmented(images, ints[_INTS:], floats[0][_FILL.stop :], spec, options)
    if not spec.reprob:
        return _normalised(images, options, options.dtype)
    fill = floats[0][_FILL] if spec.remode == "rand" else None
    # neither erase nor arithmetic takes float16
    return _delivered(_erased(_normalised(images, options, types.FLOAT), ints, fill, spec), options)


@pipeline_def
def _native_eval_graph(source: Source, input_size: int, options: PipelineOptions) -> DataNode:
    encoded, windows = _external(source, options, types.FLOAT)
    decoded = _on_device(fn.decoders.image(encoded, **_decoding(options)), options)
    images = _resized(decoded, input_size, roi_start=windows[0:2], roi_end=windows[2:4])
    return _normalised(images, options, options.dtype)


@pipeline_def
def _decode_graph(source: Source, options: PipelineOptions) -> DataNode:
    (encoded,) = _external(source, options)
    return fn.decoders.image(encoded, **_decoding(options))


def _decoding(options: PipelineOptions) -> dict[str, Any]:
    """Stored pixels, without EXIF rotation."""
    return {"output_type": types.RGB, "adjust_orientation": False, **DECODERS[options.decoder]}


def _decoded_window(encoded: DataNode, window: DataNode, options: PipelineOptions) -> DataNode:
    place = {"start": window[0:2], "shape": window[2:4], "axis_names": "HW"}
    return fn.decoders.image_slice(encoded, **place, **_decoding(options))


def _on_device(images: DataNode, options: PipelineOptions) -> DataNode:
    return images.gpu() if options.device == "gpu" and options.decoder == "cpu" else images


def _delivered(images: DataNode, options: PipelineOptions) -> DataNode:
    """float32 images as `options.dtype`."""
    return images if options.dtype == types.FLOAT else fn.cast(images, dtype=options.dtype)


def _resized(images: DataNode, input_size: int, **roi: DataNode) -> DataNode:
    return fn.resize(
        images, size=[input_size, input_size], interp_type=types.INTERP_CUBIC, antialias=True, **roi
    )


def _augmented(
    images: DataNode, ints: DataNode, floats: DataNode, spec: PlanSpec, options: PipelineOptions
) -> DataNode:
    return rand_augment(
        images,
        ints,
        floats,
        layers=spec.layers,
        height=spec.input_size,
        width=spec.input_size,
        fill=mean_colour(options.mean),
        choices=spec.layer_ops,
    )


def _normalised(images: DataNode, options: PipelineOptions, dtype: types.DALIDataType) -> DataNode:
    """uint8 (S, S, 3) to floating point (3, S, S)."""
    mean, std = ([255 * value for value in values] for values in (options.mean, options.std))
    return fn.crop_mirror_normalize(images, mean=mean, std=std, dtype=dtype, output_layout="CHW")


def _erased(images: DataNode, ints: DataNode, fill: DataNode | None, spec: PlanSpec) -> DataNode:
    start, shape = ints[_ERASE_START], ints[_ERASE_SHAPE]
    box = {"anchor": fn.cast(start, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
    if spec.remode != "pixel":
        return fn.erase(images, fill_value=0.0 if fill is None else fill, **box)
    if ints[_ERASE_SHAPE.start] > 0:
        images = fn.erase(images, **box) + _noise(
            images, start, shape, ints[_NOISE], spec.input_size
        )
    return images


def _noise(
    images: DataNode, start: DataNode, shape: DataNode, place: DataNode, side: int
) -> DataNode:
    """Normal numbers in the box, zero around it."""
    bank = types.Constant(noise_bank(side), device=images.device, layout="CHW")
    noise = fn.slice(bank, start=place, shape=shape, axis_names="HW")
    return fn.slice(
        noise, start=-start, shape=[side, side], axis_names="HW", out_of_bounds_policy="pad"
    )
