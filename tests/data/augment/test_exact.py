"""The compiled operator in the DALI graph: bit-equal to PIL, timm and torchvision from files on,
whatever the batch."""

import dataclasses
import io

import numba
import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageOps
from scipy.stats import kstest
from torchvision import transforms
from torchvision.transforms import functional

from fastdeit.data.augment import exact as augment_exact
from fastdeit.data.augment.exact import exact, pack_exact, pack_windows
from fastdeit.data.augment.jit import SOURCE_HASH
from fastdeit.data.augment.noise import philox_words
from fastdeit.data.graphs.windows import part_to_read
from fastdeit.plan.operations import OPS
from fastdeit.plan.philox import normal, philox4x32, uniform
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec
from tests.support.timm_ops import FILL, timm_op

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, FILES = 56, 64
SPECS = {
    "deit": PlanSpec(input_size=SIDE, repeats=1, ra_prob=0.9, reprob=0.3),
    "deit3": PlanSpec(
        input_size=SIDE,
        repeats=1,
        ra_layers=0,
        reprob=0.0,
        three_augment=True,
        simple_crop=True,
        color_jitter=0.3,
    ),
    "many layers": PlanSpec(
        input_size=SIDE, repeats=1, ra_layers=6, ra_prob=1.0, ra_std=float("inf"), reprob=0.0
    ),
    "plain": PlanSpec(input_size=SIDE, repeats=1, ra_layers=0, reprob=0.0),
}


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    small = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), 3)).astype(int)
    return Image.fromarray(
        (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    )


@pytest.fixture(scope="module")
def files() -> tuple[list[np.ndarray], np.ndarray]:
    """JPEG files as bytes, and their heights and widths, int (FILES, 2)."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(60, 260, (FILES, 2))
    encoded = []
    for i, (height, width) in enumerate(sizes.tolist()):
        buffer = io.BytesIO()
        photo(rng, height, width).save(
            buffer, "JPEG", quality=90, subsampling=i % 3, progressive=i % 5 == 0
        )
        encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return encoded, sizes


Files = tuple[list[np.ndarray], np.ndarray]


def run_files(
    encoded: list[np.ndarray],
    crop: np.ndarray,
    rows: tuple[np.ndarray, ...],
    size: int,
    batch: int,
    threads: int,
):
    """Return float32 (B, 3, size, size) of encoded images, in batches of `batch`, the last one
    short."""

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=1)
    def graph():  # type: ignore[no-untyped-def]
        dtypes = [types.UINT8, types.INT32, types.INT32, types.FLOAT64]
        data, window, ints, floats = fn.external_source(source, num_outputs=4, dtype=dtypes, ndim=1)
        cut = {
            "start": window[0:2],
            "shape": window[2:4],
            "axis_names": "HW",
            "adjust_orientation": False,
        }
        return exact(
            fn.decoders.image_slice(data, output_type=types.RGB, **cut), ints, floats, size=size
        )

    def source(i: int):  # type: ignore[no-untyped-def]
        part = slice(i * batch, (i + 1) * batch) if i * batch < len(encoded) else slice(0, 1)
        return encoded[part], crop[part], rows[0][part], rows[1][part]

    pipeline = graph()
    pipeline.build()
    return np.concatenate(
        [np.array(pipeline.run()[0].as_tensor()) for _ in range(0, len(encoded), batch)]
    )


def run_draws(
    files: Files, draws: SampleParams, spec: PlanSpec, batch: int = FILES, threads: int = 2
) -> np.ndarray:
    encoded = [files[0][image] for image in draws.image_index]
    rows = pack_exact(draws, spec, MEAN, STD)
    return run_files(
        encoded, np.asarray(draws.crop, np.int32), rows, spec.input_size, batch, threads
    )


def expected_sample(data: np.ndarray, draws: SampleParams, row: int, size: int) -> np.ndarray:
    """Return float32 (3, size, size) by PIL, torchvision and timm, without erasing."""
    y, x, height, width = draws.crop[row].tolist()
    image = (
        Image.open(io.BytesIO(data.tobytes())).convert("RGB").crop((x, y, x + width, y + height))
    )
    height, width, y, x = draws.resize[row].tolist()
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if (height, width, y, x) != (size, size, 0, 0):
        image = functional.crop(
            functional.pad(image, [4], padding_mode="reflect"), y + 4, x + 4, size, size
        )
    image = ImageOps.mirror(image) if draws.flip[row] else image
    pixels = np.array(image)
    for op, arg in zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True):
        pixels = timm_op(pixels, OPS[op], arg) if op >= 0 else pixels
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(
        pixels
    ).numpy()


def outside(draws: SampleParams, size: int) -> np.ndarray:
    """Return bool (B, size, size): where nothing is erased."""
    mask = np.ones((len(draws.erase), size, size), bool)
    for row, (y, x, height, width) in enumerate(draws.erase.tolist()):
        mask[row, y : y + height, x : x + width] = False
    return mask


@pytest.mark.parametrize("name", SPECS)
def test_from_files_on_equals_timm(files: Files, name: str) -> None:
    spec = SPECS[name]
    draws = Plan(spec, files[1]).draw(1, np.arange(FILES))
    images = run_draws(files, draws, spec)
    mask = outside(draws, SIDE)
    expected = [
        expected_sample(files[0][image], draws, row, SIDE)
        for row, image in enumerate(draws.image_index)
    ]
    different = [
        row
        for row in range(FILES)
        if not np.array_equal(images[row][:, mask[row]], expected[row][:, mask[row]])
    ]
    assert different == []


def test_the_comparison_detects_another_argument(files: Files) -> None:
    spec = SPECS["deit"]
    draws = Plan(spec, files[1]).draw(1, np.arange(FILES))
    turned = np.flatnonzero((draws.ops == OPS.index("Rotate")).any(1) & (draws.erase[:, 2] == 0))
    row = int(turned[0])
    wrong = dataclasses.replace(
        draws,
        op_args=np.where(draws.ops == OPS.index("Rotate"), draws.op_args * 1.001, draws.op_args),
    )
    assert not np.array_equal(
        run_draws(files, wrong, spec)[row],
        expected_sample(files[0][draws.image_index[row]], draws, row, SIDE),
    )


@pytest.mark.parametrize("batch, threads", [(1, 1), (7, 3), (64, 1)])
def test_batch_and_threads_change_nothing(files: Files, batch: int, threads: int) -> None:
    spec = SPECS["deit"]
    draws = Plan(spec, files[1]).draw(1, np.arange(FILES))
    np.testing.assert_array_equal(
        run_draws(files, draws, spec, batch, threads), run_draws(files, draws, spec)
    )


def test_evaluation_equals_torchvisions(files: Files) -> None:
    short = int(SIDE / 0.875)
    sizes = files[1]
    resized = short * sizes // sizes.min(1, keepdims=True)
    start = np.rint((resized - SIDE) / 2).astype(int)
    rows = pack_windows(np.concatenate((resized, start), 1), MEAN, STD)
    whole = np.concatenate((np.zeros_like(sizes), sizes), 1, dtype=np.int32)
    images = run_files(files[0], whole, rows, SIDE, FILES, 2)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(short, bicubic), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    chain = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    expected = [
        chain(Image.open(io.BytesIO(data.tobytes())).convert("RGB")).numpy() for data in files[0]
    ]
    np.testing.assert_array_equal(images, np.stack(expected))


def run_images(images: np.ndarray, rows: tuple[np.ndarray, ...], size: int) -> np.ndarray:
    """Return float32 (B, 3, size, size) of decoded images, uint8 (B, h, w, 3)."""

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():  # type: ignore[no-untyped-def]
        data = fn.external_source(lambda: images, layout="HWC", dtype=types.UINT8, ndim=3)
        ints, floats = fn.external_source(
            lambda: rows, num_outputs=2, dtype=[types.INT32, types.FLOAT64], ndim=1
        )
        return exact(data, ints, floats, size=size)

    pipeline = graph()
    pipeline.build()
    (out,) = pipeline.run()
    assert out.layout() == "CHW"
    return np.array(out.as_tensor())


def test_a_region_is_resized_as_if_it_were_alone() -> None:
    """A few, one of which Pillow resizes along its columns first; all of the array by default."""
    image = np.random.default_rng(0).integers(0, 256, (420, 30, 3), np.uint8)
    for y, x, height, width in ((0, 0, 420, 30), (5, 3, 100, 20), (7, 26, 413, 4), (419, 29, 1, 1)):
        alone = np.ascontiguousarray(image[y : y + height, x : x + width])
        resize = np.array([[16, 16, 0, 0]])
        region = np.array([[y, x, height, width]])
        np.testing.assert_array_equal(
            run_images(image[None], pack_windows(resize, MEAN, STD, region=region), 16),
            run_images(alone[None], pack_windows(resize, MEAN, STD), 16),
        )


def test_a_region_may_reach_beyond_what_is_decoded_where_nothing_is_read() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    whole, resize = np.array([[0, 0, 90, 70]]), np.array([[60, 40, 20, 8]])
    y, x, height, width = part_to_read(whole, resize, 16)[0].tolist()
    part = np.ascontiguousarray(image[y : y + height, x : x + width])
    assert part.size < image.size / 2
    rows = pack_windows(resize, MEAN, STD, region=np.array([[-y, -x, 90, 70]]))
    expected = run_images(image[None], pack_windows(resize, MEAN, STD), 16)
    np.testing.assert_array_equal(run_images(part[None], rows, 16), expected)


@pytest.mark.parametrize(
    "mean, std",
    [(MEAN, STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0, 0.1307, 1.0), (1.0, 0.3081, 3.0))],
)
def test_normalising_every_level_is_torchvisions(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    image = np.arange(768).reshape(16, 16, 3).astype(np.uint8)
    rows = pack_windows(np.array([[16, 16, 0, 0]]), mean, std)
    expected = functional.normalize(functional.to_tensor(Image.fromarray(image)), mean, std)
    np.testing.assert_array_equal(run_images(image[None], rows, 16)[0], expected.numpy())


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_results_equal_timms(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2 * len(OPS), 3, 5, 3), np.uint8)
    ops = np.repeat(np.arange(len(OPS), dtype=np.int32), 2)[:, None]
    args = np.where(ops == OPS.index("Rotate"), 20.0, 0.9)
    draws = erasing(np.zeros((len(ops), 4)), np.zeros(len(ops)), size, ops=ops, op_args=args)
    out = run_images(images, pack_exact(draws, PlanSpec(input_size=size), MEAN, STD), size)
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for row, image in enumerate(images):
        small = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        expected = normalise(timm_op(np.asarray(small), OPS[ops[row, 0]], float(args[row, 0])))
        np.testing.assert_array_equal(out[row], expected.numpy(), OPS[ops[row, 0]])


def erasing(boxes: np.ndarray, keys: np.ndarray, size: int, **changes: np.ndarray) -> SampleParams:
    """Return SampleParams that do nothing but erase, and `changes`."""
    count = len(boxes)
    empty = {field.name: np.zeros(count) for field in dataclasses.fields(SampleParams)}
    fixed = {
        "resize": np.tile([size, size, 0, 0], (count, 1)),
        "ops": np.zeros((count, 0), np.int32),
    }
    noise = {
        "op_args": np.zeros((count, 0)),
        "erase": boxes,
        "noise_key": np.asarray(keys, np.uint64),
    }
    return SampleParams(**(empty | fixed | noise | changes))  # type: ignore[arg-type]


KEYS = np.array([5, 2**63 + 11, 5, 2**64 - 1, 1 << 32, 1], np.uint64)
BOXES = np.array(
    [[0, 0, 48, 48], [3, 7, 30, 21], [4, 8, 40, 40], [47, 47, 1, 1], [0, 0, 48, 1], [9, 9, 0, 0]]
)


def erased(mode: str) -> np.ndarray:
    """Return black images of 48 x 48, erased by KEYS and BOXES."""
    rows = pack_exact(erasing(BOXES, KEYS, 48), PlanSpec(remode=mode), (0.5,) * 3, (0.25,) * 3)
    return run_images(np.zeros((len(KEYS), 48, 48, 3), np.uint8), rows, 48)


def expected_noise(key: int, count: int) -> np.ndarray:
    """Return float64 (3, count): the normal numbers of the first pixels of a box."""
    zero = np.zeros(count, np.uint64)
    words = philox4x32(
        (np.arange(count, dtype=np.uint64), zero, zero, zero), (key >> 32, key & 0xFFFFFFFF)
    )
    first, second, third, fourth = (uniform(word) for word in words)
    across = np.sqrt(-2 * np.log(first)) * np.sin(2 * np.pi * second)
    return np.stack((normal(first, second), across, normal(third, fourth)))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_fills_the_box_and_leaves_the_rest(mode: str) -> None:
    images = erased(mode)
    for image, (y, x, height, width), key in zip(
        images, BOXES.tolist(), KEYS.tolist(), strict=True
    ):
        inside = np.zeros((48, 48), bool)
        inside[y : y + height, x : x + width] = True
        assert (image[:, ~inside] == -2).all()
        noise = expected_noise(key, max(height * width, 1))
        expected = {"const": 0 * noise[:, :1], "rand": noise[:, :1], "pixel": noise}[mode]
        if height:
            values = image[:, inside]
            np.testing.assert_allclose(
                values, np.broadcast_to(expected, values.shape), rtol=2e-7, atol=1e-7
            )


def test_noise_is_normal() -> None:
    noise = erased("pixel")[0]
    assert kstest(noise.reshape(-1), "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(noise.reshape(3, -1)) - np.eye(3)).max() < 0.1
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_noise_depends_on_key_and_pixel_alone() -> None:
    images = erased("pixel")
    first, third = images[0].reshape(3, -1), images[2][:, 4:44, 8:48].reshape(3, -1)
    np.testing.assert_array_equal(first[:, : third.shape[1]], third)
    assert (images[1][:, 3, 7:28] != first[:, :21]).all()


def test_noise_words_are_philoxs() -> None:
    words = numba.njit(lambda pixel, high, low: philox_words(pixel, high, low))
    for key in KEYS.tolist():
        for pixel in (0, 1, 50175, 2**32 - 1):
            counter = tuple(np.array([word], np.uint64) for word in (pixel, 0, 0, 0))
            expected = philox4x32(counter, (key >> 32, key & 0xFFFFFFFF))
            ours = words(np.uint64(pixel), np.uint64(key >> 32), np.uint64(key & 0xFFFFFFFF))
            assert ours == tuple(int(word[0]) for word in expected)


def test_rows_have_their_layout() -> None:
    """One row for a sample, whatever the layers; a rotation packs its cosine and sine."""
    spec = PlanSpec(input_size=40, remode="rand")
    ops, args = np.array([[OPS.index("Rotate"), -1]], np.int32), np.array([[60.0, 0.0]])
    draws = erasing(np.array([[1, 2, 3, 4]]), np.array([2**63 + 7]), 40, ops=ops, op_args=args)
    ints, floats = pack_exact(draws, spec, MEAN, STD)
    assert ints[0].tolist() == [
        40,
        40,
        0,
        0,
        0,
        1,
        2,
        3,
        4,
        1,
        -(2**31),
        7,
        0,
        0,
        *[0] * 4,
        *FILL,
        OPS.index("Rotate"),
        -1,
    ]
    np.testing.assert_allclose(floats[0], [*MEAN, *STD, 0.5, -np.sqrt(0.75), 0.0, 0.0], rtol=1e-14)
    assert (ints.dtype, floats.dtype) == (np.int32, np.float64)


def test_compiled_code_is_stored_on_disk() -> None:
    augment_exact._run_entry(SOURCE_HASH)
    augment_exact._run_entry.cache_clear()
    assert augment_exact._run_entry(SOURCE_HASH).cache_hits == 1


def test_the_public_operator_is_used_without_the_private_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nvidia.dali.plugin import numba as plugin

    assert issubclass(augment_exact._numba_class(), plugin.NumbaFunction)
    monkeypatch.delattr(plugin.NumbaFunction, "_get_setup_fn_cpu")
    assert augment_exact._numba_class.__wrapped__() is plugin.NumbaFunction


@pytest.mark.slow  # compiles for 10 s each time
def test_the_public_operator_gives_the_same_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nvidia.dali.plugin.numba import NumbaFunction

    image = np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), np.uint8)
    rows = pack_windows(np.array([[16, 16, 0, 0]]), MEAN, STD)
    expected = run_images(image, rows, 16)
    monkeypatch.setattr(augment_exact, "_numba_class", lambda: NumbaFunction)
    np.testing.assert_array_equal(run_images(image, rows, 16), expected)
