"""Memory of a micro-batch, measured without values, against the tensors that autograd saves."""

import dataclasses
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World
from fastdeit.kernels.backend import use_backend
from fastdeit.models.student import Student, build_student
from fastdeit.training.build import build_criterion, build_forward, count_copies
from fastdeit.training.memory.build import measure_model

CPU = World(0, 1, 0, 1, torch.device("cpu"))
CLASSES = 10
WIDTHS = {"tiny": (48, 3), "small": (96, 6), "base": (192, 12)}
"""A quarter of DeiT's widths, with its heads."""
HARD = {"distillation_type": "hard"}
NONE = {"distillation_type": "none"}
COSUB = {"distillation_type": "none", "cosub": True, "bce_loss": True}


def configure(distill: dict[str, Any], precision: str, kernels: str, batch: int) -> Config:
    smoothing = 0.0 if distill.get("bce_loss") else 0.1
    return Config().replace(
        data={"input_size": 32},
        optim={"batch_size": batch},
        run={"precision": precision, "kernels": kernels},
        distill=distill,
        mix={"smoothing": smoothing},
    )


def make_student(width: str, **parts: Any) -> Student:
    dim, heads = WIDTHS[width]
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": dim, "num_heads": heads, "depth": 3}
    name = f"deit_{width}_distilled_patch16_224"
    return build_student(name, num_classes=CLASSES, **(sizes | parts))


def make_batch(config: Config, model: nn.Module, dtype: torch.dtype) -> tuple[Batch, torch.Tensor]:
    """Return a real batch, and the model's input for it."""
    size, side = config.optim.batch_size, config.data.input_size
    depth = len(model.blocks) * count_copies(config) if isinstance(model, Student) else 0
    batch = Batch(
        unmixed=torch.randn(size, 3, side, side),
        labels=torch.randint(CLASSES, (size,)),
        lam=torch.rand(size),
        box=torch.zeros(size, 4, dtype=torch.int32),
        drop_path_mask=torch.rand(size, depth, 2) > 0.2,
        ordinals=torch.arange(size),
        image_index=torch.arange(size),
    )
    return batch, build_forward(config, model, dtype).mix(batch, with_images=False)[0]


def count_saved(config: Config, model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of the storages that autograd saves in a real forward pass, but for weights
    and inputs."""
    batch, inputs = make_batch(config, model, dtype)
    outside = [*model.parameters(), *model.buffers(), inputs]
    outside += [value for value in vars(batch).values() if torch.is_tensor(value)]
    taught = torch.randn(len(batch.labels), CLASSES)
    known = {tensor.untyped_storage().data_ptr() for tensor in [*outside, taught]}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    forward, criterion = build_forward(config, model, dtype), build_criterion(config)
    teacher = None if config.distill.distillation_type == "none" else taught
    with (
        use_backend(config.run.kernels),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outputs = forward.run(model, inputs, batch.drop_path_mask)
        criterion(outputs, batch.labels, batch.lam, teacher)
    return sum(storage.nbytes() for storage in saved.values())


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({"width": "tiny"}, HARD),
    # heads of 32, as the kernel takes
    "small": ({"width": "small", "num_heads": 3}, HARD),
    "base": ({"width": "base", "depth": 5}, HARD),
    "one head": ({"width": "tiny", "distilled": False}, NONE),
    "DeiT III": (
        {"width": "small", "distilled": False, "init_values": 0.1, "no_embed_class": True}
        | {"qkv_bias": True, "reg_tokens": 2, "num_heads": 3},
        NONE,
    ),
    "no DropPath": ({"width": "tiny", "drop_path": 0.0}, HARD),
    "soft": ({"width": "tiny"}, {"distillation_type": "soft"}),
    "cosub": ({"width": "tiny", "distilled": False}, COSUB),
}


@pytest.mark.parametrize(
    ("case", "kernels"),
    # the interpreter is slow
    [*((case, "reference") for case in CASES), ("small", "triton"), ("DeiT III", "triton")],
)
def test_what_is_stored_is_what_autograd_saves(case: str, kernels: str) -> None:
    """In bf16 with the kernels; a CPU's own attention is fp32 always, unlike a GPU's."""
    sizes, distill = CASES[case]
    fused = kernels == "triton"
    precision, dtype = ("bf16", torch.bfloat16) if fused else ("fp32", torch.float32)
    config = configure(distill, precision, kernels, batch=2 if fused else 16)
    student = make_student(**sizes).to(dtype).train()
    usage = measure_model(config, CPU, student, CLASSES)
    assert usage.activations == pytest.approx(count_saved(config, student, dtype), rel=0.02)
    assert usage.peak > usage.activations


@pytest.mark.parametrize("trainable", ["attention", "heads"])
def test_frozen_weights_store_less(trainable: str) -> None:
    config = configure(HARD, "fp32", "reference", batch=16)
    student = make_student("tiny").train()
    whole = measure_model(config, CPU, student, CLASSES).activations
    for name, weight in student.named_parameters():
        weight.requires_grad_("head" in name or (trainable == "attention" and "attn" in name))
    found = measure_model(config, CPU, student, CLASSES).activations
    assert found == pytest.approx(count_saved(config, student, torch.float32), rel=0.02)
    assert found < whole


def test_checkpointed_blocks_store_their_inputs() -> None:
    config = configure(HARD, "fp32", "reference", batch=16)
    student = make_student("small", depth=4).train()
    whole = measure_model(config, CPU, student, CLASSES)
    student.set_grad_checkpointing(True)
    usage = measure_model(config, CPU, student, CLASSES)
    tokens = config.optim.batch_size * (student.num_prefix_tokens + student.grid_size**2)
    # the sum and its norm before each block; the hooks do not see what a checkpoint refers to
    inputs = 2 * 4 * tokens * student.embed_dim * 4
    outside = count_saved(config, student, torch.float32)
    # the first norm saves the input of the first block too
    assert inputs <= usage.activations <= 1.02 * (inputs + outside)
    # of the blocks one at a time is computed again
    assert usage.activations < 0.3 * whole.activations and usage.peak < 0.7 * whole.peak


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_timm_model_is_measured(name: str) -> None:
    sized = {"img_size": 32} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=CLASSES, **sized).train()
    config = configure(NONE, "fp32", "reference", batch=16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    draws = torch.get_rng_state()
    usage = measure_model(config, CPU, model, CLASSES)
    assert torch.equal(draws, torch.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(before[key], value), key
    assert usage.activations == pytest.approx(count_saved(config, model, torch.float32), rel=0.02)


def test_memory_grows_with_the_batch() -> None:
    config = configure(HARD, "fp32", "reference", batch=16)
    student = make_student("tiny").train()
    usages = []
    for batch in (16, 32):
        changed = dataclasses.replace(config.optim, batch_size=batch)
        usages.append(
            measure_model(dataclasses.replace(config, optim=changed), CPU, student, CLASSES)
        )
    assert usages[1].activations == pytest.approx(2 * usages[0].activations, rel=0.001)
