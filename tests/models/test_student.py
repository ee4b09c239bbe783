"""The student against timm's DeiT, the published sizes and a slow loop for DropPath."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fastdeit.models.sizes import SIZES, has_qkv_bias
from fastdeit.models.student import Student, build_student
from fastdeit.models.weights import fit_student_weights, read_weights

PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
}
NANO: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
}


def make_student(**overrides: Any) -> Student:
    return Student(**{**NANO, **overrides})


def make_images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def perturb(model: torch.nn.Module) -> None:
    """Set random values everywhere, so that no zero bias or unit norm hides a mistake."""
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=drawn))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        student = build_student(name, num_classes=1000, qkv_bias=True)
    assert sum(p.numel() for p in student.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "tiny" in name])
def test_tiny_exchanges_weights_with_timm(name: str) -> None:
    theirs = timm.create_model(name).eval()
    perturb(theirs)
    ours = build_student(name, num_classes=1000, qkv_bias=True).eval()
    images = make_images(2, 224)
    assert fit_student_weights(ours, theirs.state_dict()) == []
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
        perturb(ours)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["deit_small_patch16_224", "deit_base_distilled_patch16_224"])
def test_other_sizes_equal_timm(name: str) -> None:
    theirs = timm.create_model(name).eval()
    with torch.device("meta"):
        ours = build_student(name, num_classes=1000, qkv_bias=True).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = make_images(1, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_training_logits_and_gradients_equal_timm() -> None:
    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(name, depth=2, num_classes=10).train()
    theirs.set_distilled_training(True)
    perturb(theirs)
    ours = build_student(name, num_classes=10, depth=2, qkv_bias=True, drop_path=0.0).train()
    fit_student_weights(ours, theirs.state_dict())
    images = make_images(2, 224)
    pairs = [model(images) for model in (ours, theirs)]
    for pair in pairs:
        (pair[0].square().sum() + pair[1].exp().sum()).backward()
    torch.testing.assert_close(pairs[0], pairs[1], rtol=0, atol=1e-5)
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-3, atol=1e-4)


def test_evaluation_is_the_mean_of_the_heads() -> None:
    student = make_student().eval()
    images = make_images(2, 32)
    cls_logits, dist_logits = student.forward_heads(images)
    assert torch.equal(student(images), (cls_logits + dist_logits) / 2)
    assert not torch.allclose(cls_logits, dist_logits)


def slow_forward(student: Student, image: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    """Return both heads' logits of one image (3, H, W) with its mask (depth, 2), block by block as
    in the paper's figure."""
    tokens = student.patch_embed.proj(image[None]).flatten(2)[0].T
    prefix = [student.cls_token[0], student.dist_token[0]]
    prefix += [student.reg_token[0]] if student.num_reg_tokens else []
    if student.no_embed_class:
        x = torch.cat([*prefix, tokens + student.pos_embed[0]])
    else:
        x = torch.cat([*prefix, tokens]) + student.pos_embed[0]
    blocks: Any = student.blocks
    for block, bits, rate in zip(blocks, keep, student.drop_path_rates, strict=True):
        if bits[0]:
            q, k, v = (
                block.attn.qkv(block.norm1(x)).unflatten(1, (3, student.num_heads, -1)).unbind(1)
            )
            weights = (torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
            branch = block.attn.proj(torch.einsum("hnm,mhd->nhd", weights, v).flatten(1))
            x = x + (1 if block.ls1 is None else block.ls1.gamma) * branch / (1 - rate)
        if bits[1]:
            branch = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
            x = x + (1 if block.ls2 is None else block.ls2.gamma) * branch / (1 - rate)
    x = student.norm(x)
    return [student.head(x[0]), student.head_dist(x[1])]


@pytest.mark.parametrize("constant", [False, True], ids=["linear", "constant"])
def test_drop_path_equals_the_slow_loop(constant: bool) -> None:
    student = make_student(drop_path=0.4, constant_drop_path=constant).train()
    perturb(student)
    images = make_images(8, 32)
    keep = torch.rand(8, 3, 2, generator=torch.Generator().manual_seed(3)) > 0.4
    with torch.no_grad():
        heads = student(images, keep)
        for row in range(8):
            expected = slow_forward(student, images[row], keep[row])
            torch.testing.assert_close(
                [heads[0][row], heads[1][row]], expected, rtol=1e-4, atol=1e-5
            )


def test_drop_path_rates_rise_linearly() -> None:
    with torch.device("meta"):
        linear = build_student("deit_tiny_patch16_224", num_classes=2).drop_path_rates
    assert linear == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert make_student(drop_path=0.2, constant_drop_path=True).drop_path_rates == (0.2, 0.2, 0.2)
    assert make_student(depth=1).drop_path_rates == (0.0,)


def test_without_a_mask_torch_draws_one_in_training() -> None:
    student = make_student(drop_path=0.5).train()
    images = make_images(2, 32)
    torch.manual_seed(7)
    drawn = student(images)
    torch.manual_seed(7)
    rates = torch.linspace(0, 0.5, 3)
    keep = torch.rand(2, 3, 2) >= rates[:, None]
    assert not keep.all()
    torch.testing.assert_close(student(images, keep), drawn, rtol=0, atol=0)
    assert not torch.equal(student(images)[0], drawn[0])
    student.eval()
    assert torch.equal(student(images), student(images))
    many = make_student(drop_path=0.5, constant_drop_path=True)._branch_scales(None, 4000)
    assert many is not None and set(many.unique().tolist()) == {0.0, 2.0}
    assert abs(float(many.mean()) - 1) < 0.02


def test_a_mask_has_the_right_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 2\)"):
        make_student().train()(make_images(2, 32), torch.ones(2, 4, 2, dtype=torch.bool))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_every_parameter_gets_a_gradient(distilled: bool, qkv_bias: bool) -> None:
    student = make_student(distilled=distilled, qkv_bias=qkv_bias).train()
    outputs = student(make_images(4, 32), torch.ones(4, 3, 2, dtype=torch.bool))
    sum(logits.square().sum() for logits in (outputs if distilled else [outputs])).backward()
    without = [
        key for key, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []
    assert any("qkv.bias" in key for key, _ in student.named_parameters()) == qkv_bias


@pytest.mark.parametrize(
    "size",
    [{"image_size": 40}, {"patch_size": 4}, {"num_heads": 2, "mlp_ratio": 2.5}, {"depth": 1}],
)
def test_other_shapes_run(size: dict[str, Any]) -> None:
    student = make_student(**size, distilled=False).eval()
    assert student(make_images(2, size.get("image_size", 32))).shape == (2, 5)


def test_bf16_student_runs() -> None:
    student = make_student().train()
    keep = torch.ones(2, 3, 2, dtype=torch.bool)
    full = student(make_images(2, 32), keep)
    half = student.bfloat16()(make_images(2, 32).bfloat16(), keep)
    assert half[0].dtype == torch.bfloat16
    torch.testing.assert_close([h.float() for h in half], list(full), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"image_size": 33}, "33"), ({"num_heads": 5}, "5 heads"), ({"drop_path": 1.0}, "1.0")],
)
def test_student_rejects_sizes_that_do_not_divide(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_student(**overrides)


def test_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(ValueError, match="deit_tiny_patch16_224"):
        build_student("deit_huge", num_classes=2)
    assert len(SIZES) == 20


def test_wrong_image_size_fails_with_the_size() -> None:
    with pytest.raises(ValueError, match="must be 32 px"):
        make_student(drop_path=0.0).train()(make_images(1, 40))
    with pytest.raises(ValueError, match="multiples of 8"):
        make_student().eval()(make_images(1, 41))


def test_evaluation_at_another_size_equals_resized_weights() -> None:
    student, other = make_student().eval(), make_student(image_size=48).eval()
    fit_student_weights(other, student.state_dict())
    images = make_images(2, 48)
    torch.testing.assert_close(student(images), other(images))


def test_a_student_set_to_another_size_trains_and_gives_the_same_logits() -> None:
    student, images = make_student(drop_path=0.0).eval(), make_images(2, 48)
    expected = student(images)
    student.set_input_size(img_size=(48, 48))
    torch.testing.assert_close(student(images), expected, rtol=0, atol=0)
    assert len(student.train()(images)) == 2
    with pytest.raises(ValueError, match="multiple of 8"):
        student.set_input_size(50)
    with pytest.raises(ValueError, match="square"):
        student.set_input_size((48, 32))


def save(tmp_path: Path, state: dict[str, Any], wrapper: str | None, suffix: str) -> Path:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(
            state, path, metadata={"model": "deit_tiny_distilled_patch16_224", "num_heads": "3"}
        )
    else:
        torch.save(
            {wrapper: state, "args": argparse.Namespace(lr=1.0), "epoch": 3} if wrapper else state,
            path,
        )
    return path


@pytest.mark.parametrize(
    ("wrapper", "suffix"),
    [(None, ".safetensors"), (None, ".pth"), ("model", ".pth"), ("state_dict", ".pth.tar")],
)
def test_weights_load_from_every_wrapper(tmp_path: Path, wrapper: str | None, suffix: str) -> None:
    source, target = make_student(), make_student()
    perturb(source)
    assert (
        fit_student_weights(
            target, read_weights(save(tmp_path, source.state_dict(), wrapper, suffix))[0]
        )
        == []
    )
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


def test_resolution_and_number_of_classes_may_differ() -> None:
    source, target = make_student(), make_student(image_size=64, num_classes=9)
    perturb(source)
    head = target.head.weight.clone()
    notes = fit_student_weights(target, source.state_dict())
    assert len(notes) == 3 and "head" in notes[0] and "4 x 4 to 8 x 8" in notes[2]
    assert torch.equal(target.pos_embed[:, :2], source.pos_embed[:, :2]) and torch.equal(
        target.head.weight, head
    )
    grid = source.pos_embed[:, 2:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    resized = (
        F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(target.pos_embed[:, 2:], resized)


def test_positions_are_resized_as_in_deit_on_request() -> None:
    source, target = make_student(), make_student(image_size=64)
    perturb(source)
    fit_student_weights(target, source.state_dict(), antialias=False)
    # deit's main.py
    grid = source.pos_embed[:, 2:].reshape(-1, 4, 4, 24).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    tokens = grid.permute(0, 2, 3, 1).flatten(1, 2)
    expected = torch.cat([source.pos_embed[:, :2], tokens], dim=1)
    torch.testing.assert_close(target.pos_embed, expected, rtol=0, atol=1e-6)
    timms = make_student(image_size=64)
    fit_student_weights(timms, source.state_dict())
    assert (timms.pos_embed - target.pos_embed).abs().max() > 1e-3


def test_qkv_bias_is_detected() -> None:
    biased = make_student(qkv_bias=True).state_dict()
    assert has_qkv_bias(biased) and not has_qkv_bias(make_student().state_dict())
    with pytest.raises(ValueError, match="qkv_bias=True"):
        fit_student_weights(make_student(), biased)


def test_weights_that_do_not_fit_fail_with_their_names() -> None:
    plain = make_student(distilled=False).state_dict()
    with pytest.raises(ValueError, match="dist_token is missing"):
        fit_student_weights(make_student(), plain)


def test_bad_files_fail_with_one_line(tmp_path: Path) -> None:
    def refuses(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)

    refuses(tmp_path / "none.pth", "no checkpoint at")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    refuses(tmp_path / "cut.safetensors", "no whole safetensors")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    refuses(tmp_path / "cut.pth", "plain weights")
    torch.save(make_student(), tmp_path / "pickled.pth")
    refuses(tmp_path / "pickled.pth", "plain weights")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    refuses(tmp_path / "other.pth", "no state dict")


def test_student_exports_with_a_free_batch_size() -> None:
    student = make_student(depth=1).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(student, (make_images(4, 32),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(make_images(3, 32)), student(make_images(3, 32)))
