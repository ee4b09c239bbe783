"""`augment_images` and `augment_crops`: the pixels of the loader, for images that a user has
decoded."""

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastdeit
from fastdeit.data.index import Index
from fastdeit.data.loaders.train import OrdinalLoader
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec
from tests.support.noise_images import SIDE, split_options, write_noise
from tests.support.quick_kernels import quick_kernels

SPEC = PlanSpec(seed=4, input_size=SIDE, repeats=2, ra_prob=0.9, reprob=0.6)
COUNT = 12
BACKENDS = {"reference": contextlib.nullcontext, "kernels": quick_kernels}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_noise(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def draws(index: Index) -> SampleParams:
    return Plan(SPEC, index.sizes).draw(0, np.arange(COUNT))


@pytest.fixture(scope="module")
def images(index: Index, draws: SampleParams) -> list[torch.Tensor]:
    opened = [Image.open(io.BytesIO(index.read(row))) for row in draws.image_index.tolist()]
    return [torch.from_numpy(np.array(image)) for image in opened]


@pytest.fixture(scope="module")
def expected(index: Index) -> torch.Tensor:
    """The loader's images, by the exact backend on the CPU."""
    options, _ = split_options({"num_threads": 1})
    plan = Plan(SPEC, index.sizes)
    (batch,) = OrdinalLoader(index, plan, options, [(0, np.arange(COUNT))], micro_batch=COUNT)
    return batch.images


def resized(images: list[torch.Tensor], draws: SampleParams) -> torch.Tensor:
    """Return the crops as Pillow resizes them, not flipped."""
    crops = []
    for image, (y, x, h, w) in zip(images, draws.crop.tolist(), strict=True):
        crop = Image.fromarray(image[y : y + h, x : x + w].numpy())
        crops.append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(crops))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_whole_images_become_the_loaders(images, draws, expected, backend: Any) -> None:
    with backend():
        assert torch.equal(fastdeit.augment_images(images, draws, SPEC), expected)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_resized_crops_become_the_loaders(images, draws, expected, backend: Any) -> None:
    assert draws.flip.any() and not draws.flip.all()
    with backend():
        ours = fastdeit.augment_crops(resized(images, draws), draws, SPEC)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_from_float32(images, draws, expected, dtype) -> None:
    ours = fastdeit.augment_images(images, draws, SPEC, dtype=dtype)
    assert torch.equal(ours, expected.to(dtype))


def test_mean_and_deviation_are_those_given(images, draws, expected) -> None:
    unerased = dataclasses.replace(draws, erase=0 * draws.erase, ops=0 * draws.ops - 1)
    plain = fastdeit.augment_images(images, unerased, SPEC, mean=(0, 0, 0), std=(1, 1, 1))
    assert plain.min() >= 0 and plain.max() == 1


def test_images_of_one_size_may_be_one_tensor(draws: SampleParams) -> None:
    images = torch.randint(0, 256, (COUNT, 60, 50, 3), dtype=torch.uint8)
    sizes = np.full((150, 2), (60, 50))
    drawn = Plan(SPEC, sizes).draw(0, np.arange(COUNT))
    ours = fastdeit.augment_images(images, drawn, SPEC)
    assert torch.equal(ours, fastdeit.augment_images(list(images), drawn, SPEC))
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(ours, fastdeit.augment_images(strided, drawn, SPEC))


@pytest.mark.gpu
def test_a_gpu_makes_the_pixels_of_the_cpu(images, draws, expected) -> None:
    on_gpu = [image.cuda() for image in images]
    assert torch.equal(fastdeit.augment_images(on_gpu, draws, SPEC).cpu(), expected)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastdeit.augment_images(on_gpu, draws, SPEC)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:-1], r"number of images must be 12, .* \(got 11\)"),
        (lambda images: [], r"number of images must be 12"),
        (lambda images: [image.float() for image in images], r"images must be uint8 \(h, w, 3\)"),
        (lambda images: [image[..., 0] for image in images], r"images must be uint8 \(h, w, 3\)"),
        (lambda images: [image[:2] for image in images], "images must be at least .* in height"),
    ],
)
def test_images_of_other_draws_are_refused(images, draws, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastdeit.augment_images(change(images), draws, SPEC)


def test_crops_of_another_size_are_refused(images, draws) -> None:
    crops = torch.zeros(COUNT, SIDE, SIDE + 1, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"crops must be 16 x 16 pixels, as input_size \(got"):
        fastdeit.augment_crops(crops, draws, SPEC)
    with pytest.raises(ValueError, match="dtype must be one of torch.float32"):
        fastdeit.augment_images(images, draws, SPEC, dtype=torch.float64)


def test_a_plan_of_other_draws_is_refused(images, draws) -> None:
    with pytest.raises(ValueError, match="spec must be of 2 operations a sample"):
        fastdeit.augment_images(images, draws, dataclasses.replace(SPEC, ra_layers=1))
