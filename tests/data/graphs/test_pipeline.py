"""The DALI graphs against PIL and torchvision, and their replay: a sample's pixels depend on its
ordinal alone."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms

from fastdeit.data.augment.native import noise_bank
from fastdeit.data.augment.resize.weights import FILTERS
from fastdeit.data.graphs import pipeline as graphs
from fastdeit.data.graphs.eval_crop import EvalCrop
from fastdeit.data.graphs.options import BACKENDS, PipelineOptions
from fastdeit.data.graphs.pipeline import (
    build_eval_pipeline,
    build_train_pipeline,
    decode_alone,
    pack_draws,
    pack_eval,
)
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec
from tests.support.places import Distances, device_of, to_numpy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 40
SIZES = [(64, 80), (90, 60), (33, 47), (120, 41), (40, 40), (57, 200), (40, 64), (300, 25)]
# levels of 255, largest and mean: DALI's bicubic rounds once, PIL's after each of its two passes
RESIZE = {"exact": (0, 0.0), "native": (6, 0.35)}
# of normalised values back to levels: float32's, and half a step of float16 just under 4 times the
# largest std
ROUNDING = {"cpu": 1e-3, "as_gpu": 0.06, "gpu": 0.06}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    decay = 1 / np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]).clip(0.02)
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) * decay).real
    pixels = (noise - noise.min()) / np.ptp(noise) * 255
    return Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0)))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Files of several shapes, formats and colour models, and one that is marked as rotated."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for label in range(2):
        folder = root / "train" / str(label)
        folder.mkdir(parents=True)
        for i, (height, width) in enumerate(SIZES):
            photo(rng, height, width).save(folder / f"{i}.{('jpg', 'png')[label]}")
    photo(rng, 50, 70).convert("L").save(root / "train/0/grey.jpg")
    photo(rng, 70, 50).convert("RGBA").save(root / "train/1/alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    photo(rng, 60, 44).save(root / "train/0/turned.jpg", exif=exif)
    photo(rng, 44, 60).quantize(64).save(root / "train/1/palette.png")
    photo(rng, 48, 52).save(root / "train/1/lossless.webp", lossless=True)
    photo(rng, 52, 48).save(root / "train/1/plain.bmp")
    photo(rng, 60, 61).convert("CMYK").save(root / "train/0/cmyk.jpg")
    photo(rng, 61, 60).save(root / "train/0/progressive.jpg", progressive=True, subsampling=0)
    return build_index(root, "train")


def plain_draws(index: Index, **changes: np.ndarray) -> SampleParams:
    """Return draws of every image, whole and unchanged."""
    count = len(index)
    draws = Plan(PlanSpec(input_size=SIDE, repeats=1, ra_layers=0, reprob=0.0), index.sizes).draw(
        0, np.arange(count)
    )
    whole = np.concatenate((np.zeros((count, 2), np.int32), index.sizes), 1)
    draws = dataclasses.replace(
        draws, image_index=np.arange(count), crop=whole, flip=np.zeros(count, bool)
    )
    return dataclasses.replace(draws, **changes)


def options(batch_size: int, **changes: object) -> PipelineOptions:
    plain = PipelineOptions(MEAN, STD, batch_size, prefetch=1, backend="native")
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def run_train(
    index: Index, draws: SampleParams, spec: PlanSpec, place: str, **changes: object
) -> np.ndarray:
    """Return (B, 3, S, S): float32 on a CPU, float16 on a GPU."""
    chosen = options(len(draws.image_index), device=device_of(place), **changes)
    fed = (index.encoded(draws.image_index), *pack_draws(draws, spec, chosen))
    images = to_numpy(build_train_pipeline(lambda i: fed, spec, chosen).run()[0])
    assert images.dtype == (np.float32 if place == "cpu" else np.float16)
    return images


def run_plan(
    index: Index, plan: Plan, epoch: int, ordinals: np.ndarray, batch_size: int, **changes: object
) -> np.ndarray:
    """Return the samples at `ordinals`, in batches of `batch_size`, the last one short."""
    parts = [ordinals[i : i + batch_size] for i in range(0, len(ordinals), batch_size)]
    chosen, held = options(batch_size, **changes), []

    def source(i: int):  # type: ignore[no-untyped-def]
        draws = plan.draw(epoch, parts[min(i, len(parts) - 1)])
        held.append((index.encoded(draws.image_index), *pack_draws(draws, plan.spec, chosen)))
        return held[-1]

    pipeline = build_train_pipeline(source, plan.spec, chosen)
    return np.concatenate([to_numpy(pipeline.run()[0]) for _ in parts])


def levels(images: np.ndarray) -> np.ndarray:
    """Return normalised (B, 3, S, S) as levels 0..255, (B, S, S, 3)."""
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return ((images.astype(np.float64) * std + mean) * 255).transpose(0, 2, 3, 1)


def opened(index: Index, row: int) -> Image.Image:
    return Image.open(io.BytesIO(index.read(row))).convert("RGB")


def hold_resized(
    distances: Distances, images: np.ndarray, expected: list[Image.Image], backend: str
) -> None:
    most, mean = (bound + ROUNDING[distances.place] for bound in RESIZE[backend])
    distances.check(
        levels(images), np.stack([np.asarray(image) for image in expected]), most=most, mean=mean
    )


def test_crop_resize_and_flip_are_pils(
    index: Index, backend: str, place: str, distances: Distances
) -> None:
    rng, count = np.random.default_rng(0), len(index)
    shape = np.maximum((index.sizes * rng.uniform(0.2, 1, (count, 2))).astype(np.int32), 3)
    start = (rng.random((count, 2)) * (index.sizes - shape + 1)).astype(np.int32)
    draws = plain_draws(
        index, crop=np.concatenate((start, shape), 1), flip=np.arange(count) % 3 == 0
    )
    expected = []
    for row, ((y, x, h, w), flip) in enumerate(zip(draws.crop.tolist(), draws.flip, strict=True)):
        image = (
            opened(index, row)
            .crop((x, y, x + w, y + h))
            .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        )
        expected.append(ImageOps.mirror(image) if flip else image)
    for layers in (0, 1):  # the two places where the graph flips
        spec = PlanSpec(input_size=SIDE, repeats=1, ra_layers=layers, reprob=0.0)
        nothing = np.full((count, layers), -1, np.int32)
        unchanged = dataclasses.replace(draws, ops=nothing, op_args=0.0 * nothing)
        hold_resized(
            distances, run_train(index, unchanged, spec, place, backend=backend), expected, backend
        )


def unresized(index: Index, place: str, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle 25 x 25 pixels of each image, by a pipeline and by Pillow, in levels."""
    start = (index.sizes - 25) // 2
    draws = plain_draws(index, crop=np.concatenate((start, np.full_like(start, 25)), 1))
    draws = dataclasses.replace(
        draws, resize=np.tile(np.array([25, 25, 0, 0], np.int32), (len(index), 1))
    )
    images = run_train(
        index, draws, PlanSpec(input_size=25, repeats=1, ra_layers=0, reprob=0.0), place, **changes
    )
    cut = [
        opened(index, row).crop((x, y, x + w, y + h))
        for row, (y, x, h, w) in enumerate(draws.crop.tolist())
    ]
    return levels(images), np.stack([np.asarray(image) for image in cut])


def test_unresized_pixels_are_exact(
    index: Index, backend: str, place: str, distances: Distances
) -> None:
    """Decoding, of every format and colour model, and normalising lose nothing."""
    distances.check(*unresized(index, place, backend=backend), most=ROUNDING[place])


def erased(
    index: Index, mode: str, place: str, backend: str = "native"
) -> tuple[np.ndarray, np.ndarray, SampleParams]:
    """Return images, the mask of the erased pixels (B, S, S), and the draws; every other sample is
    erased."""
    count, spec = (
        len(index),
        PlanSpec(input_size=SIDE, repeats=1, ra_layers=0, reprob=1.0, remode=mode),
    )
    plan = Plan(dataclasses.replace(spec, erase_area=(0.2, 0.5)), index.sizes)
    drawn = plan.draw(0, np.arange(count))
    boxes = np.where(np.arange(count)[:, None] % 2 == 0, drawn.erase, 0)
    draws = plain_draws(index, erase=boxes, noise_key=drawn.noise_key)
    mask = np.zeros((count, SIDE, SIDE), bool)
    for row, (y, x, h, w) in enumerate(boxes.tolist()):
        mask[row, y : y + h, x : x + w] = True
    return run_train(index, draws, spec, place, backend=backend), mask, draws


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_leaves_the_rest_alone(index: Index, mode: str, backend: str, place: str) -> None:
    images, mask, _ = erased(index, mode, place, backend)
    spec = PlanSpec(input_size=SIDE, repeats=1, ra_layers=0, reprob=0.0)
    unerased = run_train(index, plain_draws(index), spec, place, backend=backend)
    assert mask[::2].any((1, 2)).all() and not mask[1::2].any()
    outside = np.broadcast_to(~mask[:, None], images.shape)
    np.testing.assert_array_equal(images[outside], unerased[outside])


def test_erasing_const_is_zero(index: Index, backend: str, place: str) -> None:
    images, mask, _ = erased(index, "const", place, backend)
    assert not images.transpose(0, 2, 3, 1)[mask].any()


def test_erasing_rand_is_one_colour_a_box(index: Index, backend: str, place: str) -> None:
    images, mask, _ = erased(index, "rand", place, backend)
    inside = [
        image.transpose(1, 2, 0)[box] for image, box in zip(images[::2], mask[::2], strict=True)
    ]
    colours = np.stack([pixels[0] for pixels in inside])
    assert all((pixels == colour).all() for pixels, colour in zip(inside, colours, strict=True))
    assert len(np.unique(colours)) > 0.9 * colours.size  # float16 has two of one value now and then


def test_erasing_pixel_is_normal_noise(index: Index, backend: str, place: str) -> None:
    images, mask, _ = erased(index, "pixel", place, backend)
    noise = images.transpose(0, 2, 3, 1)[mask].astype(np.float64)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    distinct = 0.9 if place == "cpu" else 0.2  # float16 has some 20,000 numbers for it
    assert len(np.unique(noise)) > distinct * noise.size


def test_native_noise_is_the_window_that_the_key_chooses(index: Index, place: str) -> None:
    images, mask, draws = erased(index, "pixel", place)
    bank = noise_bank(SIDE).astype(images.dtype)
    for row in range(0, len(index), 2):
        y, x, h, w = draws.erase[row].tolist()
        key = int(draws.noise_key[row])
        v, u = (key >> 32) % 257, (key % 2**32) % 257
        rounding = 0 if place == "cpu" else 2**-10  # ties may go the other way
        np.testing.assert_allclose(
            images[row][:, y : y + h, x : x + w], bank[:, v : v + h, u : u + w], rounding
        )


def test_the_noise_bank_is_the_same_everywhere() -> None:
    """Philox's integers are exact; the normal transform may differ in the last bit of float32."""
    bank = noise_bank(1)
    assert (bank.shape, bank.dtype) == ((3, 257, 257), np.float32)
    np.testing.assert_allclose(bank[0, 0, :3], [0.99113768, -0.15363823, -1.18635786], rtol=1e-6)


@pytest.fixture(scope="module")
def plan(index: Index) -> Plan:
    return Plan(PlanSpec(seed=7, input_size=SIDE, repeats=2, ra_prob=0.8, reprob=0.5), index.sizes)


@pytest.fixture(scope="module")
def replayed(index: Index, plan: Plan) -> dict[str, np.ndarray]:
    return {
        backend: run_plan(index, plan, 3, np.arange(32), 32, backend=backend)
        for backend in BACKENDS
    }


@pytest.mark.parametrize(("batch_size", "threads"), [(7, 1), (16, 2), (64, 4), (32, 1)])
def test_replay_over_batch_sizes_and_threads(
    index: Index,
    plan: Plan,
    replayed: dict[str, np.ndarray],
    batch_size: int,
    threads: int,
    backend: str,
) -> None:
    chosen = {"num_threads": threads, "prefetch": threads, "backend": backend}
    np.testing.assert_array_equal(
        run_plan(index, plan, 3, np.arange(32), batch_size, **chosen), replayed[backend]
    )


@pytest.mark.parametrize("simple_crop", [False, True])
@pytest.mark.parametrize("repeats", [2, 3])
def test_copies_out_of_one_window_equal_copies_decoded_alone(
    index: Index, repeats: int, simple_crop: bool
) -> None:
    """A batch of two samples never holds two copies of an image."""
    spec = PlanSpec(input_size=SIDE, repeats=repeats, simple_crop=simple_crop)
    plan, ordinals = Plan(spec, index.sizes), np.arange(24)
    _, decodes, *_ = pack_draws(plan.draw(0, ordinals), spec, options(24, backend="exact"))
    assert decodes.sum() < 0.75 * len(ordinals)
    alone = run_plan(index, plan, 0, ordinals, 2, backend="exact")
    together = run_plan(index, plan, 0, ordinals, 24, backend="exact")
    np.testing.assert_array_equal(together, alone)


def test_each_image_of_a_batch_is_decoded_once(index: Index, plan: Plan) -> None:
    draws = plan.draw(0, np.arange(32))
    windows, decodes, first, *_ = pack_draws(draws, plan.spec, options(16, backend="exact"))
    for batch in (slice(0, 16), slice(16, 32)):
        images = draws.image_index[batch]
        assert sorted(images[decodes[batch]]) == np.unique(images).tolist()
        assert decodes[batch][first[batch]].all()
        np.testing.assert_array_equal(images[first[batch]], images)
        np.testing.assert_array_equal(windows[batch][first[batch]], windows[batch])


def test_replay_alone_and_in_any_order(
    index: Index, plan: Plan, replayed: dict[str, np.ndarray], backend: str
) -> None:
    chosen = np.array([17, 3, 30, 3, 9])
    np.testing.assert_array_equal(
        run_plan(index, plan, 3, chosen, 3, backend=backend), replayed[backend][chosen]
    )


def test_other_epochs_look_different(
    index: Index, plan: Plan, replayed: dict[str, np.ndarray], backend: str
) -> None:
    images = run_plan(index, plan, 4, np.arange(32), 16, backend=backend)
    assert (np.abs(images - replayed[backend]).mean((1, 2, 3)) > 1e-3).all()


def test_native_is_close_to_exact(index: Index, place: str, distances: Distances) -> None:
    """The whole chain but the noise, which differs on purpose; single operations:
    tests/data/augment/test_native.py."""
    plan, device = (
        Plan(PlanSpec(seed=7, input_size=SIDE, repeats=2, reprob=0.0), index.sizes),
        device_of(place),
    )
    native = levels(run_plan(index, plan, 0, np.arange(32), 32, device=device))
    exact = levels(run_plan(index, plan, 0, np.arange(32), 32, backend="exact"))
    distances.check(native, exact, mean=2.0)
    assert np.median(np.abs(native - exact)) < 0.5


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_evaluation_images_equal_torchvisions(
    index: Index, crop_pct: float, backend: str, place: str, distances: Distances
) -> None:
    chosen = options(len(index), backend=backend, device=device_of(place))
    crop = EvalCrop(SIDE, crop_pct)
    fed = (index.encoded(np.arange(len(index))), *pack_eval(index.sizes, crop, chosen))
    images = to_numpy(build_eval_pipeline(lambda i: fed, crop, chosen).run()[0])
    bicubic = transforms.InterpolationMode.BICUBIC
    expected = transforms.Compose(
        [transforms.Resize(int(SIDE / crop_pct), bicubic), transforms.CenterCrop(SIDE)]
    )
    hold_resized(
        distances, images, [expected(opened(index, row)) for row in range(len(index))], backend
    )


def test_centre_window_lies_in_the_image() -> None:
    sizes = np.random.default_rng(0).integers(1, 700, (500, 2))
    (windows,) = pack_eval(sizes, EvalCrop(224, 0.9), options(1))
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] <= sizes * (1 + 1e-6)).all()
    assert (windows[:, 2:] > windows[:, :2]).all()


@pytest.mark.parametrize(
    ("crop", "backend", "message"),
    [
        (EvalCrop(224, 0.0), "exact", "eval-crop-ratio must be above 0, at most 2"),
        (EvalCrop(224, 2.5), "exact", "eval-crop-ratio must be above 0, at most 2"),
        (EvalCrop(224, 0.9, "nearest"), "exact", "interpolation must be one of bicubic, .*box"),
        (EvalCrop(224, 0.9, "box"), "native", "interpolation must be one of bicubic, .*native"),
        (EvalCrop(224, 0.9, mode="centre"), "exact", "crop-mode must be one of center, squash"),
        (EvalCrop(224, 0.9, mode="border"), "native", "augment-backend must be exact where"),
        (EvalCrop(224, 1.15), "native", "augment-backend must be exact where"),
    ],
)
def test_a_crop_that_cannot_be_done_is_refused(crop: EvalCrop, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_eval(np.ones((1, 2)), crop, options(1, backend=backend))


CROPS = [
    *(EvalCrop(SIDE, 0.875, name) for name in FILTERS[1:]),
    EvalCrop(SIDE, 1.15),
    EvalCrop(SIDE, 0.9, mode="squash"),
    EvalCrop(SIDE, 1.0, "bilinear", "squash"),
    EvalCrop(SIDE, 0.94, mode="border"),
    EvalCrop(SIDE, 1.0, "bilinear", "border"),
]


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_every_crop_equals_timms_bit_for_bit(index: Index, crop: EvalCrop) -> None:
    chosen = options(len(index), backend="exact")
    fed = (index.encoded(np.arange(len(index))), *pack_eval(index.sizes, crop, chosen))
    images = to_numpy(build_eval_pipeline(lambda i: fed, crop, chosen).run()[0])
    transform = create_transform(
        SIDE,
        crop_pct=crop.crop_pct,
        crop_mode=crop.mode,
        interpolation=crop.interpolation,
        mean=chosen.mean,
        std=chosen.std,
    )
    expected = [transform(opened(index, row)).numpy() for row in range(len(index))]
    np.testing.assert_array_equal(images, np.stack(expected))


@pytest.mark.parametrize(
    "crop", [EvalCrop(SIDE, 0.875, "bilinear"), EvalCrop(SIDE, 0.9, "lanczos", "squash")], ids=str
)
def test_native_crops_are_close_to_exact(
    index: Index, crop: EvalCrop, distances: Distances, place: str
) -> None:
    found = []
    for backend, device in (("exact", "cpu"), ("native", device_of(place))):
        chosen = options(len(index), backend=backend, device=device)
        fed = (index.encoded(np.arange(len(index))), *pack_eval(index.sizes, crop, chosen))
        pipeline = build_eval_pipeline(lambda i: fed, crop, chosen)  # noqa: B023
        found.append(levels(to_numpy(pipeline.run()[0])))
    distances.check(found[1], found[0], mean=1.0)


def test_an_image_is_decoded_alone(index: Index, tmp_path: Path) -> None:
    decode_alone(index.encoded(np.array([0])), feeds_paths=True)
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(RuntimeError):
        decode_alone([np.frombuffer(bytes(tmp_path / "bad.jpg"), np.uint8)], feeds_paths=True)


def test_image_of_another_size_fails_before_it_is_decoded(index: Index) -> None:
    """DALI's decoder frees, when it fails, what its threads still use."""
    wrong = index.sizes[:3] + np.array([[0, 0], [0, 1], [0, 0]], np.int32)
    draws = SampleParams(**{name: rows[:3] for name, rows in vars(plain_draws(index)).items()})
    spec = PlanSpec(input_size=SIDE, repeats=1, ra_layers=0, reprob=0.0)
    for backend in (*BACKENDS, "kernels"):
        kernels = backend == "kernels"
        named = "exact" if kernels else backend
        chosen = options(3, backend=named, uses_kernels=kernels, knows_sizes=True)
        rows = (draws.crop,) if kernels else pack_draws(draws, spec, chosen)
        fed = (index.encoded(draws.image_index), wrong, *rows)
        with pytest.raises(RuntimeError, match="operator `nvidia.dali.fn.slice`"):
            build_train_pipeline(lambda i: fed, spec, chosen).run()  # noqa: B023


def test_device_is_checked() -> None:
    with pytest.raises(ValueError, match="device must be one of cpu, gpu"):
        options(1, device="cuda")
    with pytest.raises(ValueError, match="backend must be one of exact, native"):
        options(1, backend="pil")
    with pytest.raises(ValueError, match="decoder must be cpu with backend native on a cpu"):
        options(1, decoder="mixed")


def test_floats_are_packed_only_where_used(index: Index) -> None:
    draws = plain_draws(index)
    assert len(pack_draws(draws, PlanSpec(ra_layers=0, remode="pixel"), options(1))) == 2
    assert len(pack_draws(draws, PlanSpec(ra_layers=0, remode="rand"), options(1))) == 3


# largest and mean of the whole chain, levels; exact: half a step of float16 above 4, where the
# largest noise is. The branches of a GPU move AutoContrast's levels by one; the kernel of its warps
# may be as far from the CPU's as that is from PIL's
WHOLE: dict[tuple[str, str], tuple[float | None, float]] = {
    ("exact", "as_gpu"): (0.12, 0.12),
    ("exact", "gpu"): (0.12, 0.12),
    ("native", "as_gpu"): (None, 0.1),
    ("native", "gpu"): (None, 2.0),
}


@pytest.mark.parametrize(
    "place", ["as_gpu", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True
)
def test_with_all_steps_on_all_places_give_the_same_images(
    index: Index,
    plan: Plan,
    replayed: dict[str, np.ndarray],
    backend: str,
    place: str,
    distances: Distances,
) -> None:
    """RandAugment and erasing too. A wrong sample, operation, box or noise would move its image by
    tens of levels."""
    images = run_plan(index, plan, 3, np.arange(32), 32, backend=backend, device=device_of(place))
    ours, theirs = levels(images), levels(replayed[backend])
    most, mean = WHOLE[backend, place]
    distances.check(ours, theirs, most=most, mean=mean)
    difference = np.abs(ours - theirs)
    assert np.median(difference) < 0.5
    assert difference.mean((1, 2, 3)).max() < 8


@pytest.mark.parametrize("place", [pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("decoder", ["mixed", "hardware"])
def test_gpus_decoders_are_near_pils(
    index: Index, decoder: str, place: str, distances: Distances
) -> None:
    """Chroma that is repeated where Pillow interpolates it moves these JPEG files by 2.8 to 4.1
    levels, and no other."""
    ours, expected = unresized(index, place, backend="native", decoder=decoder)
    distances.check(ours, expected, mean=4.1)
    assert np.median(np.abs(ours - expected)) < 3


SPECS = {
    "rand_augment": PlanSpec(input_size=SIDE, reprob=0.25),
    "one_colour": PlanSpec(input_size=SIDE, reprob=0.25, remode="rand"),
    "three_augment": PlanSpec(
        input_size=SIDE, ra_layers=0, three_augment=True, simple_crop=True, color_jitter=0.3
    ),
    "plain": PlanSpec(input_size=SIDE, ra_layers=0, reprob=0.0),
}


@pytest.mark.parametrize("decoder", graphs.DECODERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_dali_accepts_the_graph_of_a_gpu(spec: PlanSpec, decoder: str) -> None:
    """The operators exist on a GPU, and their named arguments lie on the CPU; operands of
    arithmetic are not checked."""
    chosen = options(4, device="gpu", decoder=decoder, knows_sizes=True)
    graph = graphs._native_graph(lambda i: (), spec, chosen, **{**chosen.dali, "device_id": None})
    assert len(graph.serialize()) > 0


@pytest.mark.parametrize("decoder", graphs.DECODERS)
def test_dali_accepts_the_windows_of_a_gpu(decoder: str) -> None:
    chosen = options(
        4, device="gpu", backend="exact", uses_kernels=True, decoder=decoder, knows_sizes=True
    )
    graph = graphs._windows_graph(lambda i: (), chosen, **{**chosen.dali, "device_id": None})
    assert len(graph.serialize()) > 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "decoder"),
    [("native", "mixed"), ("native", "hardware"), ("native", "cpu"), ("exact", "cpu")],
)
def test_a_gpu_replays_samples_bit_for_bit(
    index: Index, plan: Plan, backend: str, decoder: str
) -> None:
    whole, parts = (
        run_on_gpu(index, plan, np.arange(16), size, backend=backend, decoder=decoder)
        for size in (16, 4)
    )
    assert torch.equal(whole, parts)


def run_on_gpu(
    index: Index, plan: Plan, ordinals: np.ndarray, batch_size: int = 16, **changes: object
) -> torch.Tensor:
    chosen, parts, held = (
        options(batch_size, device="gpu", **changes),
        ordinals.reshape(-1, batch_size),
        [],
    )

    def source(i: int):  # type: ignore[no-untyped-def]
        draws = plan.draw(0, parts[i % len(parts)])
        held.append((index.encoded(draws.image_index), *pack_draws(draws, plan.spec, chosen)))
        return held[-1]

    pipeline = build_train_pipeline(source, plan.spec, chosen)
    return torch.cat([torch.from_dlpack(pipeline.run()[0].as_tensor()).clone() for _ in parts])
