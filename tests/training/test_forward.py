"""Forward passes alone: our student's planned one, and a timm model's seeded one."""

import dataclasses

import pytest
import timm
import torch

from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.mix import mix_reference
from fastdeit.training.forward import PlannedStudent, SeededModel
from tests.data.loaders.test_batch import make_pixels
from tests.support.tiny_student import CLASSES, make_batch, make_model


def test_student_takes_patches_and_the_planned_mask() -> None:
    batch = make_batch(0)
    model = make_model().train()
    forward = PlannedStudent(model.patch_size, torch.float32)
    patches, images = forward.mix(batch, with_images=True)
    mixed = mix_reference(batch.images, batch.lam, batch.box)
    assert images is not None and torch.equal(images, mixed)
    outputs = forward.run(model, patches, batch.drop_path_mask)
    for ours, expected in zip(outputs, model(mixed, batch.drop_path_mask), strict=True):
        torch.testing.assert_close(ours, expected)


def test_images_are_made_only_for_a_teacher() -> None:
    for forward in (PlannedStudent(8, torch.float32), SeededModel(0, torch.float32)):
        assert forward.mix(make_batch(0), with_images=False)[1] is None


def test_pixels_are_mixed_as_their_normalised_images() -> None:
    images = make_batch(0)
    pixels = dataclasses.replace(images, unmixed=make_pixels(len(images.labels)))
    images = dataclasses.replace(images, unmixed=pixels.images)
    for forward in (PlannedStudent(8, torch.bfloat16), SeededModel(0, torch.bfloat16)):
        ours, expected = (forward.mix(batch, with_images=True) for batch in (pixels, images))
        assert ours[1] is not None and expected[1] is not None
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


def test_timm_model_repeats_its_own_random_draws() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=0.5).train()
    batch = dataclasses.replace(make_batch(0), digest=7)
    forward = SeededModel(3, torch.float32)
    images, for_teacher = forward.mix(batch, with_images=True)
    assert images is for_teacher

    def run(forward: SeededModel, batch: Batch, step: int) -> torch.Tensor:
        forward.seed(batch, step)
        return forward.run(model, images, batch.drop_path_mask)

    first = run(forward, batch, 5)
    torch.rand(17)
    assert torch.equal(run(forward, batch, 5), first)
    others = [
        run(forward, batch, 6),
        run(forward, dataclasses.replace(batch, digest=8), 5),
        run(SeededModel(4, torch.float32), batch, 5),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_a_run_without_the_plans_mask_fails() -> None:
    with pytest.raises(ValueError, match="^drop_path_mask must be the plan's"):
        PlannedStudent(8, torch.float32).run(torch.nn.Identity(), torch.zeros(2), None)


def test_a_batch_seen_twice_has_two_planned_masks() -> None:
    batch = make_batch(0)
    other = ~batch.drop_path_mask
    twice = dataclasses.replace(batch, drop_path_mask=torch.cat((batch.drop_path_mask, other), 1))
    model = make_model().train()
    forward = PlannedStudent(model.patch_size, torch.float32, copies=2)
    patches, _ = forward.mix(batch, with_images=False)
    outputs = forward.run(model, patches, twice.drop_path_mask)
    for place, head in enumerate(outputs):
        first, second = head.chunk(2)
        torch.testing.assert_close(first, model(patches, batch.drop_path_mask)[place])
        torch.testing.assert_close(second, model(patches, other)[place])
