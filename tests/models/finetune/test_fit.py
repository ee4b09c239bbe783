"""`--finetune` from another kind of student: tokens, patches, resolution and biases."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fastdeit.config.schema import Config
from fastdeit.models.build import build_model
from fastdeit.models.student import Student, build_student

CLASSES = ("cat", "dog", "eel")
DISTILLED, PLAIN = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"
SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
Tensors = dict[str, torch.Tensor]


def write(path: Path, name: str, size: int = 32, **changes: Any) -> Student:
    """Write the weights of a student, all other than as initialised; return it."""
    sizes: dict[str, Any] = SIZES | {"image_size": size} | changes
    student = build_student(name, num_classes=len(CLASSES), **sizes)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_file(student.state_dict(), path)
    return student.eval()


def build(
    path: Path, name: str, size: int = 32, **changes: Any
) -> tuple[Student, Tensors, list[str]]:
    """Build a student from weights; return it, its initial weights, and the notes, without those on
    names of classes."""
    model: dict[str, Any] = SIZES | {"model": name} | changes
    alone = {"distillation_type": "none"}
    config = Config().replace(model=model, data={"input_size": size}, distill=alone)
    student: Any = build_model(config.replace(model={"finetune": str(path)}), CLASSES)
    fresh = build_model(config, CLASSES)[0].state_dict()
    notes = [note for note in student[1] if "does not name them" not in note]
    return student[0].eval(), fresh, notes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_undistilled_weights_give_a_distilled_student_all_but_its_token_and_head(
    path: Path,
) -> None:
    source = write(path, PLAIN)
    student, fresh, notes = build(path, DISTILLED)
    rest = "left as initialised: the file has none"
    assert notes == [f"head_dist {rest}", f"distillation token {rest}"]
    found = student.state_dict()
    new = {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert new <= found.keys() and all(torch.equal(found[key], fresh[key]) for key in new)
    own = source.state_dict()
    positions = own.pop("pos_embed")
    assert all(torch.equal(found[key], value) for key, value in own.items())
    assert torch.equal(found["pos_embed"][:, [0, *range(2, 18)]], positions)
    assert torch.equal(found["pos_embed"][:, 1], fresh["pos_embed"][:, 1])


def test_distilled_weights_give_a_plain_student_without_token_and_head(path: Path) -> None:
    own = write(path, DISTILLED).state_dict()
    student, _, notes = build(path, PLAIN)
    rest = "of the file dropped: the model has none"
    assert notes == [f"head_dist {rest}", f"distillation token {rest}"]
    found = student.state_dict()
    positions = own.pop("pos_embed")
    assert all(torch.equal(value, own[key]) for key, value in found.items() if key in own)
    assert torch.equal(found["pos_embed"], positions[:, [0, *range(2, 18)]])


@pytest.mark.parametrize(("before", "found"), [(0, "none"), (2, "2")])
def test_registers_of_another_number_are_as_initialised(
    before: int, found: str, path: Path
) -> None:
    own = write(path, DISTILLED, reg_tokens=before).state_dict()["pos_embed"]
    student, fresh, (note,) = build(path, DISTILLED, registers=3)
    assert note == f"registers left as initialised: the file has {found}"
    state = student.state_dict()
    assert torch.equal(state["reg_token"], fresh["reg_token"])
    assert torch.equal(state["pos_embed"][:, 2:5], fresh["pos_embed"][:, 2:5])
    kept = own[:, [0, 1, *range(2 + before, 18 + before)]]
    assert torch.equal(state["pos_embed"][:, [0, 1, *range(5, 21)]], kept)


@pytest.mark.parametrize(("before", "after"), [(32, 48), (48, 32)], ids=["larger", "smaller"])
@pytest.mark.parametrize("name", [DISTILLED, PLAIN])
def test_another_resolution_resizes_the_patches_positions_alone(
    name: str, before: int, after: int, path: Path
) -> None:
    source = write(path, name, before)
    student, _, notes = build(path, name, after)
    grids = [f"{side // 8} x {side // 8}" for side in (before, after)]
    assert notes == [f"position embedding resized from {grids[0]} to {grids[1]} patches"]
    prefix = source.num_prefix_tokens
    found, own = student.state_dict()["pos_embed"], source.state_dict()["pos_embed"]
    assert torch.equal(found[:, :prefix], own[:, :prefix])
    assert found.shape[1] == prefix + (after // 8) ** 2
    # the student resizes in the same way when it evaluates images of another size
    images = torch.randn(2, 3, after, after)
    torch.testing.assert_close(student(images), source(images))


def test_another_resolution_and_a_new_token_go_together(path: Path) -> None:
    write(path, PLAIN, 32)
    student, fresh, notes = build(path, DISTILLED, 48)
    assert len(notes) == 3
    assert torch.equal(student.state_dict()["pos_embed"][:, 1], fresh["pos_embed"][:, 1])


def test_another_patch_size_keeps_the_function_of_resized_images(path: Path) -> None:
    """The same grid of patches of twice the side: an enlarged image gives the output of before."""
    source = write(path, DISTILLED, 32)
    student, _, notes = build(path, DISTILLED, 64, patch_size=16)
    assert notes == ["patch projection resized from 8 x 8 to 16 x 16 pixels"]
    images = torch.randn(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # (2, 3, 4, 4, 8, 8)
    small = patches.reshape(-1, 1, 8, 8)
    large = F.interpolate(small, (16, 16), mode="bicubic", antialias=True)
    large = large.reshape(2, 3, 4, 4, 16, 16).transpose(3, 4).reshape(2, 3, 64, 64)
    torch.testing.assert_close(student(large), source(images), rtol=1e-3, atol=1e-3)


def test_weights_without_heads_start_a_training(path: Path) -> None:
    """As those of a self-supervised training."""
    state = write(path, DISTILLED).state_dict()
    save_file({key: value for key, value in state.items() if "head" not in key}, path)
    student, fresh, notes = build(path, DISTILLED)
    assert [note.partition(" ")[0] for note in notes] == ["head", "head_dist"]
    assert torch.equal(student.head.weight, fresh["head.weight"])
    assert torch.equal(student.dist_token, state["dist_token"])


def test_biases_that_the_weights_lack_are_zero_and_change_nothing(path: Path) -> None:
    source = write(path, DISTILLED)
    student, _, (note,) = build(path, DISTILLED, qkv_bias=True)
    assert note == "the biases of query, key and value start at 0: the file has none"
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(student(images), source(images))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"embed_dim": 48}, r"cls_token is \(1, 1, 24\), not \(1, 1, 48\)"),
        ({"depth": 3}, "blocks.2.norm1.weight is missing"),
        ({"depth": 1}, "blocks.1.attn.proj.bias is not the student's"),
    ],
)
def test_another_width_or_depth_is_refused_in_one_line(
    changes: dict[str, int], problem: str, path: Path
) -> None:
    write(path, PLAIN)
    for name in (PLAIN, DISTILLED):
        with pytest.raises(ValueError, match=problem) as refused:
            build(path, name, **changes)
        assert "\n" not in str(refused.value)


def test_weights_of_a_convnet_are_refused_with_their_file(path: Path) -> None:
    save_file({"stem.conv.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(
        ValueError, match=f"--finetune {path}: not a DeiT checkpoint: cls_token, .*"
    ):
        build(path, DISTILLED)


@pytest.mark.parametrize("key", ["pos_embed", "cls_token", "patch_embed.proj.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 2)])
def test_tensors_without_the_axes_of_a_student_are_refused_in_one_line(
    key: str, shape: tuple[int, ...], path: Path
) -> None:
    state = write(path, PLAIN).state_dict() | {key: torch.zeros(shape)}
    save_file(state, path)
    with pytest.raises(
        ValueError, match=f"not a DeiT checkpoint: {key} missing or of another shape"
    ) as refused:
        build(path, DISTILLED)
    assert "\n" not in str(refused.value)
