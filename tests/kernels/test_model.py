"""Training steps of the student with all kernels, against the same steps with the references.

.venv/bin/python -m pytest tests/kernels/test_model.py, about 6 s
"""

from collections import Counter
from typing import NamedTuple

import pytest
import torch

from fastdeit.kernels.backend import is_fused, use_backend
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.models.student import Student
from fastdeit.training.losses import DistillationLoss
from tests.kernels import interpreter
from tests.kernels.operator_counter import OperatorCounter

interpreter.correct()
DEVICE = interpreter.DEVICE
CLASSES = 10


def make_student(size: int = 16, embed_dim: int = 64, depth: int = 2) -> Student:
    student = Student(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // 32,
        image_size=size,
        patch_size=8,
        num_classes=CLASSES,
        drop_path=0.3,
    )
    return student.to(DEVICE).train()


class Batch(NamedTuple):
    """The fields of a `fastdeit.data.loaders.batch.Batch` that a step reads."""

    images: torch.Tensor
    labels: torch.Tensor
    lam: torch.Tensor
    box: torch.Tensor
    drop_path_mask: torch.Tensor


def make_batch(step: int, size: int = 16, count: int = 4, depth: int = 2) -> Batch:
    random = torch.Generator().manual_seed(step)
    lam = torch.rand(count // 2, generator=random).repeat_interleave(2)
    box = torch.zeros(count, 4, dtype=torch.int32)
    box[:2] = torch.tensor([3, 2, 11, 9])
    lam[:2] = 1 - 8 * 7 / size**2
    tensors = {
        "images": torch.randn(count, 3, size, size, generator=random),
        "labels": torch.randint(0, CLASSES, (count,), generator=random),
        "lam": lam,
        "box": box,
        "drop_path_mask": torch.rand(count, depth, 2, generator=random) > 0.3,
    }
    return Batch(**{name: tensor.to(DEVICE) for name, tensor in tensors.items()})


def train(
    backend: str, steps: int, dtype: torch.dtype, **sizes: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of `steps` steps with a backend, and the weights after the last."""
    with use_backend(backend):
        return train_steps(steps, dtype, **sizes)


def train_steps(
    steps: int, dtype: torch.dtype, **sizes: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    student = make_student(**sizes).to(dtype)
    criterion = DistillationLoss(kind="hard")
    masters = [parameter.detach().float().clone() for parameter in student.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-3)
    losses = []
    for step in range(steps):
        batch = make_batch(step, sizes.get("size", 16), depth=sizes.get("depth", 2))
        patches, images = mix_patches(
            batch.images, batch.lam, batch.box, student.patch_size, dtype, with_images=True
        )
        assert images is not None
        teacher_weights = torch.linspace(-3, 3, 3 * CLASSES, device=DEVICE).view(3, CLASSES)
        teacher = images.float().mean((2, 3)) @ teacher_weights
        parts = criterion(student(patches, batch.drop_path_mask), batch.labels, batch.lam, teacher)
        parts.loss.backward()
        for master, parameter in zip(masters, student.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
            parameter.grad = None
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, student.parameters(), strict=True):
                parameter.copy_(master)
        losses.append(parts.loss.item())
    return losses, student.state_dict()


def test_three_steps_with_kernels_equal_the_reference() -> None:
    plain, weights = train("reference", 3, torch.float32)
    fused, others = train("triton", 3, torch.float32)
    assert fused == pytest.approx(plain, rel=1e-5)
    for name, value in weights.items():
        # AdamW's first steps are the gradients' signs: where a gradient is about 0, its rounding
        # decides
        near = torch.isclose(others[name], value, rtol=1e-4, atol=1e-5)
        assert near.float().mean() > 0.999, name
        torch.testing.assert_close(others[name], value, rtol=0, atol=6e-3, msg=name)


@use_backend("triton")
def test_compiled_student_calls_every_kernel_in_one_graph() -> None:
    """The graph has no break, the kernels are calls of our ops, and the logits are bit-equal."""
    student = make_student()
    batch = make_batch(0)
    patches, _ = mix_patches(batch.images, batch.lam, batch.box, student.patch_size)
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        # the MLP's forward and backward are graphs of their own within the student's
        for part in graph.modules():
            if isinstance(part, torch.fx.GraphModule):
                found.extend(str(node.target) for node in part.graph.nodes)
        return graph

    compiled = torch.compile(student, backend=backend, fullgraph=True)
    expected = student(patches, batch.drop_path_mask)
    traced = compiled(patches, batch.drop_path_mask)
    assert all(map(torch.equal, traced, expected))
    ours = [name for name in found if name.startswith("fastdeit.")]
    # a block has one attention, one GELU and two norms; one norm comes before the first
    counts = {"attention": 2, "gelu": 2, "gelu_bwd": 2, "add_norm": 5}
    assert Counter(ours) == {f"fastdeit.{name}.default": count for name, count in counts.items()}


def test_block_launches_kernels_alone_and_saves_twelve_widths_a_token() -> None:
    """What a third block adds to a student of two, in a step in bf16."""
    (operators, saved), (deeper, more_saved) = (step_of_depth(depth) for depth in (2, 3))
    added = deeper - operators
    counts = {"attention": 1, "gelu": 1, "add_norm": 2}
    assert {name: added[name] for name in counts} == counts
    assert {name: added[f"{name}_bwd"] for name in counts} == counts
    # four layers, each with three products, and no sum for the gradient of a bias
    assert added["mm"] == 12 and added["addmm"] == added["sum"] == 0
    # beside them in fp32: a mean and a rstd of two norms and the sum of two heads per token, and
    # DropPath's factor of two branches per image
    images = 4
    tokens = 6 * images
    assert more_saved - saved == tokens * (2 * 12 * 64 + 4 * (2 * 2 + 2)) + 4 * 2 * images


def step_of_depth(depth: int) -> tuple[Counter[str], int]:
    """Return the calls of each operator in a step of a student, and the bytes saved in its forward
    beside the parameters."""
    student = make_student(depth=depth).bfloat16()
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    patches = torch.randn(4, 4, 192, device=DEVICE).bfloat16()
    keep = torch.ones(4, depth, 2, dtype=torch.bool, device=DEVICE)
    with use_backend("triton"), OperatorCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(logits.float().square().mean() for logits in student(patches, keep))
        torch.autograd.backward(loss)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    return counter.calls, sum(size for place, size in saved.items() if place not in parameters)


@pytest.mark.gpu
def test_fifty_steps_in_bf16_stay_within_bf16_noise() -> None:
    sizes = {"size": 64, "embed_dim": 192, "depth": 4}
    plain, _ = train("reference", 50, torch.bfloat16, **sizes)
    fused, _ = train("auto", 50, torch.bfloat16, **sizes)
    exact, _ = train("reference", 50, torch.float32, **sizes)
    noise = sum(abs(a - b) for a, b in zip(plain, exact, strict=True)) / 50
    ours = sum(abs(a - b) for a, b in zip(fused, exact, strict=True)) / 50
    assert ours < 2 * noise + 1e-3


@use_backend("reference")
def test_patches_and_images_give_equal_logits() -> None:
    student = make_student().eval()
    batch = make_batch(0)
    patches, _ = mix_patches(batch.images, batch.lam, batch.box, student.patch_size)
    expected = student(mix(batch.images, batch.lam, batch.box))
    torch.testing.assert_close(student(patches), expected)
    with pytest.raises(ValueError, match="4 patches of 192"):
        student(patches[:, :3])


def test_backend_decides_whether_kernels_run() -> None:
    cpu = torch.zeros(1)
    for name, fused in (("auto", False), ("reference", False), ("triton", True)):
        with use_backend(name):
            assert is_fused(cpu) == fused
    assert not is_fused(cpu)
    message = r"kernels must be one of auto, reference, triton \(got 'cuda'\)"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):
        pass


def test_previous_backend_is_restored_after_an_error() -> None:
    cpu = torch.zeros(1)
    with use_backend("triton"):
        with pytest.raises(RuntimeError), use_backend("reference"):
            raise RuntimeError
        assert is_fused(cpu)
    assert not is_fused(cpu)
