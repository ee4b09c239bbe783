"""The plan of a device's memory: the state that a trainer holds, and advice where it is near."""

import gc
from typing import Any

import pytest
import torch

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.build import build_model
from fastdeit.models.execution.memory import MemoryMeter
from fastdeit.models.finetune.trainable import count_parameters
from fastdeit.models.student import Student, build_student
from fastdeit.training.build import build_trainer
from fastdeit.training.memory.build import build_layout, build_planner, note_memory
from fastdeit.training.memory.plan import MemoryPlan, ZeroLayout, advise, count_state
from tests.support.tiny_student import (
    CLASSES,
    STEPS_PER_EPOCH,
    configure,
    make_batch,
    run_steps,
    teach,
)

EIGHT_GPUS = World(0, 8, 0, 8, torch.device("cuda:0"))
PLAIN = ZeroLayout(2, 1, 2, 1, is_flat=True, offloads=False, ema=True, bucket=50)


def make_wide_student() -> Student:
    """Return a student whose weights are larger than everything else at tests' sizes."""
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 2}
    return build_student("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **sizes)


class RealMeter(MemoryMeter):
    """A meter without the shapes that DeepSpeed stores as tensors without values."""

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._add(storage)


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bf16"},
        {"precision": "fp32"},
        {"precision": "bf16", "micro_batch": 8},
        {"precision": "fp32", "model_ema": False},
    ],
    ids=["bf16", "fp32", "two micro-batches", "no EMA"],
)
def test_the_state_is_what_a_trainer_holds(fields: dict[str, Any]) -> None:
    world = init_distributed()
    config = configure(**fields)
    model = make_wide_student()
    planned = count_state(*count_parameters(model), build_layout(config, world))
    make_batch(0)  # its pictures stay
    with RealMeter() as meter:
        called: Any = teach
        trainer = build_trainer(config, world, model, called, STEPS_PER_EPOCH)
        run_steps(trainer, 1, config.optim.micro_batch or 16)
        del model
        gc.collect()
    assert meter.live == pytest.approx(sum(planned.values()), rel=0.02)


def test_ranks_and_stages_share_the_state() -> None:
    def total(**changes: Any) -> float:
        return sum(count_state(1000, 1000, PLAIN._replace(**changes)).values())

    # weights 2, masters and moments 12, EMA 4, gradients 4, evaluation copy 2
    assert total() == 24_000
    assert total(micro_steps=2) == 28_000
    assert total(ranks=4) == 2000 + 16_000 / 4 + 4000 + 4000 / 4 + 2000
    assert total(ema=False) == 20_000
    assert total(stage=2, is_flat=False, offloads=True) == 2000 + 4000 + 4 * 50 + 2000
    assert total(stage=3, is_flat=False, ranks=4) == 2500 + 4000 + 1000 + 4 * 50 + 4000


def test_frozen_weights_have_no_state() -> None:
    assert count_state(1000, 100, PLAIN)["optimizer"] == 1600


def plan(size: int, checkpointing: bool) -> MemoryPlan:
    """Return a plan of 1 GB and 10 MB an image, or 3 MB with checkpointing."""
    each = 3e6 if checkpointing else 10e6
    return MemoryPlan({"weights": 1e9, "activations": each * size}, size)


@pytest.mark.parametrize(
    ("size", "free", "advice"),
    [
        (1024, 8e9, "--micro-batch 512 or --grad-checkpointing"),
        (1024, 4e9, "--micro-batch 128 or --micro-batch 512 --grad-checkpointing"),
        (90, 1.75e9, "--micro-batch 30 or --grad-checkpointing"),
        (1024, 1e9, "try --zero-stage 3, a smaller model, or smaller images"),
    ],
)
def test_the_largest_micro_batch_that_fits_is_named(size: int, free: float, advice: str) -> None:
    assert advise(plan, plan(size, False), [False, True], free) == advice


def test_without_checkpointing_there_is_one_way() -> None:
    assert advise(plan, plan(1024, False), [False], 8e9) == "--micro-batch 512"
    assert advise(plan, plan(1024, True), [True], 3e9) == "--micro-batch 512"


def configure_small(**changes: Any) -> Config:
    sizes = {"embed_dim": 64, "depth": 6, "num_heads": 2}
    name = changes.pop("model", "deit_tiny_distilled_patch16_224")
    model = {"model": name} | (sizes if name.startswith("deit") else {})
    return Config().replace(model=model, data={"input_size": 128}, run=changes)


def note(config: Config, free: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    model, _ = build_model(config, tuple("abcde"))
    return note_memory(config, EIGHT_GPUS, model, None, 5)


def test_a_run_on_a_gpu_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = note(configure_small(), 79.1e9, monkeypatch)
    assert line.startswith("needs about 0.2 of 79.1 GB a device: ") and "activations 0.07" in line
    assert "suffice" not in line


def test_a_near_limit_is_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = note(configure_small(), 130e6, monkeypatch)
    assert line.endswith("; it may not suffice: --micro-batch 64 or --grad-checkpointing")
    (line,) = note(configure_small(grad_checkpointing=True), 100e6, monkeypatch)
    assert line.endswith("; it may not suffice: --micro-batch 64")


def test_a_model_that_cannot_be_measured_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no values here")

    monkeypatch.setattr("fastdeit.training.memory.build.measure_model", refuse)
    assert note(configure_small(), 79.1e9, monkeypatch) == []


def test_a_cpu_has_no_line() -> None:
    assert note_memory(configure(), init_distributed(), make_wide_student(), None, 5) == []


def test_a_planned_model_stays_as_it_is() -> None:
    config = configure_small()
    model, _ = build_model(config, tuple("abcde"))
    planner = build_planner(config, EIGHT_GPUS, model, None, 5)
    small, whole, checkpointed = planner(16, False), planner(128, False), planner(128, True)
    assert small.total < checkpointed.total < whole.total
    assert not getattr(model, "grad_checkpointing", None)
    assert {str(weight.device) for weight in model.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpu_allocates_what_is_planned(checkpointing: bool) -> None:
    from benchmarks.bench_memory import ALLOWED, compare

    row = compare("small", 64, checkpointing, init_distributed())
    assert float(row["ratio"]) == pytest.approx(1, abs=ALLOWED)
