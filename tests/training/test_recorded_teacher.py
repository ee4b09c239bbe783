"""Training from records: the losses of the live teacher, and nothing of it in the step."""

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.measuring.counting import StepCounter
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.mix import mix
from fastdeit.models.build import build_teacher
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import STEPS_PER_EPOCH, configure, make_batch, make_model, teach


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def build(world: World, teacher: Any, decode: Any) -> Trainer:
    return build_trainer(configure(), world, make_model(), teacher, STEPS_PER_EPOCH, decode)


def with_record(batch: Batch) -> Batch:
    logits = teach(mix(batch.images, batch.lam, batch.box))
    return dataclasses.replace(batch, teacher_record=logits.argmax(1, keepdim=True).byte())


def test_steps_equal_those_of_the_live_teacher_and_make_no_images(world: World) -> None:
    live = build(world, teach, None)
    recorded = build(world, None, lambda records: records[:, 0].long())
    counts = []
    for trainer, change in ((live, lambda batch: batch), (recorded, with_record)):
        batches = [change(make_batch(step)) for step in range(3)]
        losses = [trainer.train_step([batch]) for batch in batches]
        spied = mock.patch.object(trainer.forward, "mix", wraps=trainer.forward.mix)
        with spied as made, StepCounter() as counter:
            losses.append(trainer.train_step([batches[0]]))
        counts.append((counter.launches, made.call_args.kwargs["with_images"], losses))
    (most, with_images, expected), (least, without, found) = counts
    assert with_images and not without
    # the live one's images in fp32, their means, and a product
    assert least < most
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_a_run_with_a_whole_cache_loads_no_teacher(world: World) -> None:
    config = Config().replace(distill={"teacher_path": "not there", "cache": "a folder"})
    assert build_teacher(config, world, tuple("abc")) is None
