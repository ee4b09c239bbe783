"""Parameter groups, AdamW, the schedule against its formula, and the EMA against a loop."""

import math

import pytest
import torch
from torch import nn

from fastdeit.models.student import build_student
from fastdeit.training.optim import Ema, build_adamw, build_schedule, parameter_groups


def names_of(model: nn.Module, group: dict[str, object]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}  # type: ignore[attr-defined]


def test_biases_norms_and_tokens_have_no_weight_decay() -> None:
    model = build_student("deit_tiny_distilled_patch16_224", num_classes=5, depth=2, qkv_bias=True)
    groups = parameter_groups(model, 0.05)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    by_decay = {group["weight_decay"]: names_of(model, group) for group in groups}
    assert by_decay[0.0] | by_decay[0.05] == {name for name, _ in model.named_parameters()}
    assert {
        "pos_embed",
        "cls_token",
        "dist_token",
        "norm.weight",
        "head.bias",
        "blocks.0.attn.qkv.bias",
    } <= by_decay[0.0]
    matrices = ("patch_embed.proj", "head", "head_dist")
    inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"{name}.weight" for name in matrices} | {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in inner
    }
    assert by_decay[0.05] == expected


def test_layer_decay_scales_by_depth() -> None:
    model = build_student("deit_tiny_distilled_patch16_224", num_classes=5, depth=3)
    scales = {}
    for group in parameter_groups(model, 0.05, layer_decay=0.5):
        for name in names_of(model, group):
            scales[name] = group["lr_scale"]
    assert scales["pos_embed"] == scales["patch_embed.proj.weight"] == 0.5**4
    assert [scales[f"blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scales["head.weight"] == scales["norm.weight"] == 1.0
    with pytest.raises(ValueError, match="layer-decay"):
        parameter_groups(nn.Linear(2, 2), 0.05, layer_decay=0.5)


def test_adamw_has_the_values_given() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.3}]
    optimizer = build_adamw(groups, 2e-3, (0.8, 0.95), 1e-6, fused=True)
    (group,) = optimizer.param_groups
    found = {name: group[name] for name in ("lr", "betas", "eps", "fused", "weight_decay")}
    assert found == {
        "lr": 2e-3,
        "betas": (0.8, 0.95),
        "eps": 1e-6,
        "fused": True,
        "weight_decay": 0.3,
    }


@pytest.mark.parametrize(("warmup", "total"), [(5, 50), (0, 20)])
def test_schedule_is_linear_then_cosine(warmup: int, total: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = build_schedule(
        optimizer, total_steps=total, warmup_steps=warmup, warmup_lr=1e-6, min_lr=1e-5
    )
    # the rate depends on the step alone, so a step back is allowed
    for step in (*range(total), 3):
        schedule.step_update(step)
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / total))
        linear = 1e-6 + step * (1e-3 - 1e-6) / max(warmup, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            linear if step < warmup else cosine, rel=1e-9
        )


def test_schedule_equals_timms_epoch_table_of_deit() -> None:
    """Batch 1024: the rates at the start of some epochs (timm's convention)."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = build_schedule(
        optimizer, total_steps=300 * 1251, warmup_steps=5 * 1251, warmup_lr=1e-6, min_lr=1e-5
    )
    for epoch, rate in {
        0: 1e-6,
        1: 2.008e-4,
        4: 8.002e-4,
        5: 9.9932e-4,
        150: 5.050e-4,
        299: 1.0027e-5,
    }.items():
        schedule.step_update(epoch * 1251)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-4)


def test_ema_equals_a_loop_and_copies_integers() -> None:
    flats = [torch.randn(7), torch.randn(3)]
    buffers = {"mean": torch.zeros(2), "count": torch.tensor(0)}
    ema = Ema(flats, buffers, 0.9)
    expected = [flat.double() for flat in flats]
    for step in range(5):
        flats = [flat + torch.randn_like(flat) for flat in flats]
        buffers = {"mean": torch.ones(2), "count": torch.tensor(step)}
        ema.update(flats, buffers)
        expected = [
            0.9 * old + 0.1 * new.double() for old, new in zip(expected, flats, strict=True)
        ]
    for mine, theirs in zip(ema.flats, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ema.buffers["mean"], torch.full((2,), 1 - 0.9**5))
    assert ema.buffers["count"] == 4
