"""Each operation against timm's (or torchvision's) own function on PIL, fed with the same argument."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torchvision import transforms
from torchvision.transforms import functional

from fastdeit.data.augment_native import native_window, pack_ops, rand_augment, warp_matrices
from fastdeit.draws import OPS, RAND_AUGMENT_OPS, op_arguments
from fastdeit.plan import Draws, Plan, PlanSpec

Choices = Sequence[Sequence[str]] | None
FILL = (124, 116, 104)
SHAPES = {"48x32": (48, 32), "41x57": (41, 57), "224x224": (224, 224)}
WHOLE = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
# largest and mean difference in levels; None: only the mean is bounded, since a warp moves edges
TOLERANCE: dict[str, tuple[int | None, float]] = dict.fromkeys(OPS, (0, 0.0))
# a float32 product that falls within 2e-5 under a whole level
TOLERANCE |= dict.fromkeys(("BrightnessIncreasing", "ContrastIncreasing", "SharpnessIncreasing"), (1, 0.0002))
TOLERANCE["ColorIncreasing"] = (1, 0.002)  # DALI's grey is computed in floating point, PIL's in 16-bit fixed point
TOLERANCE["Grayscale"] = (1, 0.002)  # the same grey
TOLERANCE["GaussianBlur"] = (1, 0.0005)  # ties of PIL's boxes, which are in fixed point
TOLERANCE["AutoContrast"] = (1, 0.01)  # whole levels, which PIL's double precision puts a little below or above
TOLERANCE["Equalize"] = (None, 6.0)  # OpenCV's formula
TOLERANCE |= dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), (None, 2.0))


def smooth_images(height: int, width: int, count: int) -> np.ndarray:
    """uint8 (count, height, width, 3) with 1/f noise; the first is of one level, and the second has one flat channel."""
    rng = np.random.default_rng(0)
    decay = 1 / np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]).clip(0.02)
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, height, width))) * decay).real
    low, high = noise.min((2, 3), keepdims=True), noise.max((2, 3), keepdims=True)
    span = rng.uniform(80, 255, (count, 3, 1, 1))
    images = ((noise - low) / (high - low) * span + (255 - span) * rng.random((count, 1, 1, 1))).astype(np.uint8)
    images[0], images[1, 1] = 77, 200
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def some_draws(ops: np.ndarray, args: np.ndarray) -> Draws:
    empty = np.zeros(len(ops))
    return Draws(**{field.name: empty for field in dataclasses.fields(Draws)} | {"ops": ops, "op_args": args})


def run_dali(images: np.ndarray, ops: np.ndarray, args: np.ndarray, choices: Choices = None) -> np.ndarray:
    """uint8 (B, H, W, 3) through the layers of `ops`, (B, layers)."""
    count, height, width, _ = images.shape
    ints, floats = pack_ops(some_draws(ops, args), height, width)

    @pipeline_def(batch_size=count, num_threads=2, device_id=None, prefetch_queue_depth=1, enable_conditionals=True)
    def graph():  # type: ignore[no-untyped-def]
        x = fn.external_source(lambda: images, layout="HWC", dtype=types.UINT8, ndim=3)
        i, f = fn.external_source(lambda: (ints, floats), num_outputs=2, dtype=[types.INT32, types.FLOAT], ndim=1)
        return rand_augment(x, i, f, layers=ops.shape[1], height=height, width=width, fill=FILL, choices=choices)

    pipeline = graph()
    pipeline.build()
    return np.asarray(pipeline.run()[0].as_tensor())


def run_pil(image: np.ndarray, name: str, arg: float) -> np.ndarray:
    """timm's operation; torchvision's for grey."""
    if name == "Grayscale":
        return np.asarray(transforms.Grayscale(3)(Image.fromarray(image)))
    arguments = [] if LEVEL_TO_ARG[name] is None else [int(arg) if name in WHOLE else float(arg)]
    options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    return np.asarray(NAME_TO_OP[name](Image.fromarray(image), *arguments, **options))


def arguments_of(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """ops and args, (count, 1), over the whole range of magnitudes, both ends included."""
    magnitude = np.random.default_rng(1).uniform(0, 10, count)
    magnitude[:4] = 0, 0, 10, 10
    ops = np.full((count, 1), OPS.index(name), np.int32)
    if name not in RAND_AUGMENT_OPS:
        # radius 2 itself, whose weights are tenths, makes ties, which no random radius does
        return ops, (magnitude[:, None] * 0.1899 + 0.1) * (name == "GaussianBlur")
    return ops, op_arguments(ops, magnitude[:, None], np.arange(count)[:, None] % 2 == 1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_operation_equals_pils(name: str, shape: tuple[int, int]) -> None:
    count = 24 if max(shape) < 100 else 6
    images = smooth_images(*shape, count)
    ops, args = arguments_of(name, count)
    expected = np.stack([run_pil(image, name, arg) for image, arg in zip(images, args[:, 0], strict=True)])
    difference = np.abs(run_dali(images, ops, args).astype(int) - expected)
    most, mean = TOLERANCE[name]
    assert difference.mean() <= mean
    assert most is None or difference.max() <= most


def pil_warps(name: str, images: np.ndarray, args: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    pairs = zip(images, args[:, 0].tolist(), strict=True)
    warped = [NAME_TO_OP[name](Image.fromarray(image), arg, fillcolor=FILL, resample=resample) for image, arg in pairs]
    return np.stack([np.asarray(image) for image in warped]).astype(int)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_warp_differs_less_than_pils_own_filters_do(name: str) -> None:
    images = smooth_images(64, 64, 24)
    ops, args = arguments_of(name, 24)
    cubic, linear = (
        pil_warps(name, images, args, filter_) for filter_ in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
    )
    ours = run_dali(images, ops, args).astype(int)
    assert np.abs(ours - cubic).mean() < 0.7 * np.abs(linear - cubic).mean()
    assert np.median(np.abs(ours - cubic)) <= 1


def test_warp_fills_with_the_given_colour() -> None:
    images = np.full((1, 40, 40, 3), 10, np.uint8)
    ops, args = np.array([[OPS.index("TranslateXRel")]], np.int32), np.array([[0.4]])
    assert (run_dali(images, ops, args)[0, :, 30:] == FILL).all()


def test_matrix_is_pils_affine_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, ...]] = []

    def spy(
        self: Image.Image, size: object, method: object, data: tuple[float, ...], *rest: object, **more: object
    ) -> Image.Image:
        seen.append(tuple(data))
        return self

    monkeypatch.setattr(Image.Image, "transform", spy)
    args = [17.0, -26.5, 0.27, -0.1, 0.4, -0.33]
    ops = [OPS.index(name) for name in ("Rotate", "Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")]
    for op, arg in zip(ops, args, strict=True):
        NAME_TO_OP[OPS[op]](Image.new("RGB", (57, 41)), arg, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
    ours = warp_matrices(np.array(ops), np.array(args), 41, 57)
    np.testing.assert_allclose(ours[:, :2].reshape(-1, 6), seen, rtol=0, atol=1e-12)


def test_matrix_is_the_identity_for_the_others() -> None:
    others = np.array([-1, OPS.index("Invert"), OPS.index("SolarizeAdd")])
    np.testing.assert_array_equal(warp_matrices(others, np.full(3, 9.0), 5, 7), np.broadcast_to(np.eye(3), (3, 3, 3)))


def test_closed_gate_changes_nothing() -> None:
    images = smooth_images(32, 32, 5)
    nothing = np.full((5, 2), -1, np.int32)
    np.testing.assert_array_equal(run_dali(images, nothing, np.zeros((5, 2))), images)


def chain(image: np.ndarray, names: list[str], args: list[float]) -> np.ndarray:
    for name, arg in zip(names, args, strict=True):
        image = run_pil(image, name, arg)
    return image


def test_layers_run_in_order() -> None:
    images = smooth_images(32, 32, 2)
    names = [["SolarizeAdd", "Invert", "PosterizeIncreasing"], ["PosterizeIncreasing", "AutoContrast", "SolarizeAdd"]]
    args = [[99.0, 0.0, 2.0], [2.0, 0.0, 99.0]]
    ops = np.array([[OPS.index(name) for name in row] for row in names], np.int32)
    expected = [chain(image, names[i], args[i]) for i, image in enumerate(images)]
    np.testing.assert_array_equal(run_dali(images, ops, np.array(args)), expected)


@pytest.mark.parametrize(
    "spec",
    [PlanSpec(input_size=40, color_jitter=0.3), PlanSpec(input_size=40, ra_layers=0, three_augment=True, color_jitter=0.3)],
    ids=["rand_augment", "three_augment"],
)
def test_branches_that_no_layer_holds_may_be_left_out(spec: PlanSpec) -> None:
    images, draws = smooth_images(40, 40, 24), Plan(spec, np.full((24, 2), 60)).draw(0, np.arange(24))
    everything, less = (run_dali(images, draws.ops, draws.op_args, choices) for choices in (None, spec.layer_ops))
    np.testing.assert_array_equal(less, everything)
    assert (less != images).any()


def test_no_layers_pack_to_nothing() -> None:
    ints, floats = pack_ops(some_draws(np.zeros((4, 0), np.int32), np.zeros((4, 0))), 32, 32)
    assert (ints.shape, floats.shape) == ((4, 0), (4, 0))


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_jitters_factors_down_to_zero_equal_pils(name: str) -> None:
    images, factors = smooth_images(48, 32, 6), [0.0, 0.3137, 0.7213, 1.0, 1.2871, 2.3719]
    ops = np.full((6, 1), OPS.index(f"{name}Increasing"), np.int32)
    expected = [run_pil(image, f"{name}Increasing", factor) for image, factor in zip(images, factors, strict=True)]
    difference = np.abs(run_dali(images, ops, np.array(factors)[:, None]).astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() <= 0.002


SIDE = 40
# height and width: shrunk, enlarged, and as large as needed already
WINDOW_SIZES = [(64, 80), (90, 60), (33, 47), (120, 41), (40, 40), (40, 57), (83, 40)]


def windows() -> list[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Images and rows of `Draws.resize`: the corners that reach out most, and two inside."""
    found = []
    for height, width in WINDOW_SIZES:
        image, short = smooth_images(height, width, 3)[2], min(height, width)
        high, wide = SIDE * height // short, SIDE * width // short
        corners = ((-4, -4), (high - SIDE + 4, wide - SIDE + 4), (0, 0), (-1, wide - SIDE + 2))
        found += [(image, (high, wide, y, x)) for y, x in corners]
    return found


def test_window_equals_torchvisions() -> None:
    cases = windows()
    images, rows = [image for image, _ in cases], [np.array(row, np.int32) for _, row in cases]

    @pipeline_def(batch_size=len(cases), num_threads=2, device_id=None, prefetch_queue_depth=1)
    def graph():  # type: ignore[no-untyped-def]
        x = fn.external_source(lambda: images, layout="HWC", dtype=types.UINT8, ndim=3)
        return native_window(x, fn.external_source(lambda: rows, dtype=types.INT32, ndim=1), SIDE)

    pipeline = graph()
    pipeline.build()
    resize = transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC)
    for ours, (image, (high, wide, y, x)) in zip(np.asarray(pipeline.run()[0].as_tensor()), cases, strict=True):
        padded = functional.pad(resize(Image.fromarray(image)), 4, padding_mode="reflect")
        assert padded.size == (wide + 8, high + 8)
        difference = np.abs(ours.astype(int) - np.asarray(functional.crop(padded, y + 4, x + 4, SIDE, SIDE)))
        assert difference.max() <= 3 and difference.mean() <= 0.35
        if image.shape[:2] == (high, wide):
            assert not difference.any()
