"""The checklist over settings: one changed setting at a time, and the flags that undo it."""

import dataclasses
import functools
import shlex
from pathlib import Path
from typing import Any

import pytest

from fastdeit.audit.build import audit_settings
from fastdeit.audit.checklist import CHECKLIST
from fastdeit.audit.findings import Audit
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config

BASE = Config().replace(
    data={"input_size": 32},
    augment={"aug_repeats": 3},
    model={
        "model": "deit_tiny_distilled_patch16_224",
        **{"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 8},
    },
    distill={"teacher_model": "test_resnet"},
)
"""A small student with every item of the checklist but two, its size and its images."""

SMALL = {"size", "resolution"}
_NO_TEACHER = {"distillation", "loss_weights", "teacher"}
_NO_DISTILLATION_TOKEN = {"distillation_token", "positions", "heads_at_inference"}
_NO_VIT = {
    *_NO_DISTILLATION_TOKEN,
    *{"pre_norm", "qkv_bias", "size", "layer_scale", "initial_weights", "drop_path"},
}

CASES: list[tuple[str, Any, set[str]]] = [
    ("model.model", "deit_tiny_patch16_224", _NO_DISTILLATION_TOKEN),
    ("model.model", "test_resnet", _NO_VIT),
    ("model.patch_size", 16, {"size"}),
    ("model.embed_dim", 24, {"size"}),
    ("model.depth", 4, {"size"}),
    ("model.num_heads", 2, {"size"}),
    ("model.qkv_bias", True, {"qkv_bias"}),
    ("model.init_values", 1e-4, {"layer_scale"}),
    ("model.registers", 4, {"positions"}),
    ("model.drop_path", 0.2, {"drop_path"}),
    ("model.drop_path", 0.0, {"drop_path"}),
    ("data.input_size", 64, {"resolution"}),
    ("augment.aug_repeats", 2, {"repeated_augmentation"}),
    ("augment.repeated_aug", False, {"repeated_augmentation"}),
    ("augment.src", True, {"crop_and_flip"}),
    ("augment.scale", (0.2, 1.0), {"crop_and_flip"}),
    ("augment.ratio", (0.5, 2.0), {"crop_and_flip"}),
    ("augment.hflip", 0.0, {"crop_and_flip"}),
    ("augment.aa", "rand-m7-mstd0.5-inc1", {"rand_augment"}),
    ("augment.aa", "rand-m9-mstd0.5-inc1-p0.9", {"rand_augment"}),
    ("augment.aa", "none", {"rand_augment"}),
    ("augment.aa", "3a", {"rand_augment"}),
    ("augment.reprob", 0.0, {"erasing"}),
    ("augment.remode", "const", {"erasing"}),
    ("mix.mixup", 0.2, {"mixup"}),
    ("mix.mixup", 0.0, {"mixup"}),
    ("mix.cutmix", 0.0, {"cutmix"}),
    ("mix.cutmix_minmax", (0.2, 0.8), {"cutmix"}),
    ("mix.mixup_prob", 0.5, {"mixup", "cutmix"}),
    ("mix.mixup_switch_prob", 0.2, {"mixup", "cutmix"}),
    ("mix.smoothing", 0.0, {"smoothing"}),
    ("distill.distillation_type", "soft", {"distillation"}),
    ("distill.distillation_type", "none", _NO_TEACHER),
    ("distill.distillation_alpha", 0.1, {"loss_weights"}),
    ("distill.teacher_model", "test_vit", {"teacher"}),
    ("distill.teacher_model", "test_resnet,test_vit", {"teacher"}),
    ("optim.opt", "lamb", {"optimizer", "clip_grad"}),
    ("optim.weight_decay", 0.3, {"optimizer"}),
    ("optim.opt_betas", (0.9, 0.95), {"optimizer"}),
    ("optim.opt_eps", 1e-6, {"optimizer"}),
    ("optim.lr", 1e-3, {"learning_rate"}),
    ("optim.unscale_lr", True, {"learning_rate"}),
    ("optim.layer_decay", 0.7, {"learning_rate"}),
    ("optim.min_lr", 5e-4, {"schedule"}),
    ("optim.warmup_epochs", 20.0, {"warmup"}),
    ("optim.epochs", 100, {"epochs"}),
    ("optim.batch_size", 512, {"batch_size"}),
    ("optim.clip_grad", 1.0, {"clip_grad"}),
]
"""A setting, another value, and the items that differ then."""

PAIRS: dict[str, tuple[dict[str, dict[str, Any]], set[str]]] = {
    "bce_loss": (
        {"distill": {"bce_loss": True}, "mix": {"smoothing": 0.0}},
        {"label_loss", "smoothing"},
    ),
    "cosub": (
        {
            "distill": {"cosub": True, "bce_loss": True, "distillation_type": "none"},
            "mix": {"smoothing": 0.0},
        },
        {"label_loss", "smoothing", *_NO_TEACHER},
    ),
    "sched_lag": ({"optim": {"sched_on_updates": False, "sched_lag": 1}}, set()),
}
"""Settings that are allowed with others alone."""

OUTSIDE = {
    "where things are, and who reads them": "data_path data_cache train_split val_split data_set "
    "output_dir teacher_path pretrained_teacher cache cache_miss cache_period resume",
    "how the work is done": "bad_images index_check decoder num_workers prefetch read_ahead "
    "augment_backend augment_device teacher_batch teacher_benchmark precision kernels compile "
    "cuda_graph zero_stage grad_checkpointing offload_optimizer deepspeed_config overlap_reduce "
    "micro_batch",
    "who receives the log": "log_wandb wandb_project wandb_tags prometheus callback",
    "when the run evaluates, saves, stops": "eval_epochs log_steps stop_after_steps time_limit "
    "save_steps keep_checkpoints max_bad_steps max_rollbacks checksum_steps startup_limit "
    "data_limit step_limit evaluation_limit checkpoint_limit",
    "evaluation": "eval_crop_ratio eval_input_size model_ema model_ema_decay model_ema_warmup",
    "the paper does not specify it": "mean std color_jitter mixup_group distillation_tau "
    "distillation_legacy teacher_mean teacher_std teacher_input_size dist_token_decay warmup_lr "
    "sched_on_updates seed pos_embed_antialias",
    "in a test of their own": "bce_loss cosub sched_lag finetune trainable",
}
"""Settings that no item of the checklist needs to show alone, by reason."""


def change(name: str, value: Any) -> Config:
    section, _, field = name.partition(".")
    return BASE.replace(**{section: {field: value}})


def differing(audit: Audit) -> set[str]:
    assert not audit.count("cannot be seen")
    return {row.name for row in audit.rows if row.status == "differs"}


def flipped(config: Config) -> set[str]:
    """Return the items that are another result than in the base; of those that differ in both, the
    ones of which something else is found."""
    usual = {row.name: row for row in audit_base().rows}
    rows = audit_settings(config, "changed").rows
    assert all(row.status != "cannot be seen" for row in rows)
    changed = {row.name for row in rows if row.found != usual[row.name].found}
    return {
        row.name
        for row in rows
        if row.status != usual[row.name].status or row.name in changed & SMALL
    }


@functools.cache
def audit_base() -> Audit:
    return audit_settings(BASE, "base")


def test_every_item_but_the_size_is_equal_in_the_base() -> None:
    assert differing(audit_base()) == SMALL
    assert [row.name for row in audit_base().rows] == [item.name for item in CHECKLIST]


@pytest.mark.parametrize(
    ("name", "value", "expected"), CASES, ids=[f"{name}={value}" for name, value, _ in CASES]
)
def test_a_changed_setting_shows_in_its_items_alone(
    name: str, value: Any, expected: set[str]
) -> None:
    assert flipped(change(name, value)) == expected


@pytest.mark.parametrize("name", PAIRS)
def test_settings_that_need_others_show_in_their_items(name: str) -> None:
    changes, expected = PAIRS[name]
    assert flipped(BASE.replace(**changes)) == expected


def test_every_setting_is_in_the_checklist_or_outside_of_it_for_a_reason() -> None:
    sections = [getattr(Config(), section.name) for section in dataclasses.fields(Config)]
    fields = {field.name for section in sections for field in dataclasses.fields(section)}
    outside = {name for names in OUTSIDE.values() for name in names.split()}
    shown = {name.partition(".")[2] for name, _, _ in CASES}
    assert not outside & shown and outside <= fields
    assert fields == outside | shown


def test_frozen_weights_show_where_the_paper_trains_them(tmp_path: Path) -> None:
    config = BASE.replace(model={"trainable": "heads", "finetune": str(tmp_path / "none.pth")})
    unknown = audit_settings(config, "heads")
    assert "the model cannot be built" in unknown.notes[0]
    assert unknown.count("cannot be seen") == 11
    assert {row.status for row in unknown.rows if row.section == "loss"} == {"equal"}


def test_the_flags_of_the_rows_give_what_the_paper_has() -> None:
    """Every item differs, and the flags that its rows name are applied."""
    config, _ = parse_config(
        "--recipe deit3 --init-values 1e-3 --registers 2 --src --remode rand --layer-decay 0.5 "
        "--patch-size 32 --cutmix-minmax 0.1 0.5 --mixup-prob 0.5 --warmup-epochs 2 --min-lr 4e-3 "
        "--input-size 160 --opt-eps 1e-6".split(),
        "test",
    )
    rows = [row for row in audit_settings(config, "wrong").rows if row.status == "differs"]
    left = {"pre_norm", "dropout", "initial_weights", "repeated_augmentation"}
    assert {row.name for row in rows} == {item.name for item in CHECKLIST} - left
    flags = [word for row in rows for word in shlex.split(row.flag)]
    changed, _ = parse_config(["--recipe", "deit3", *flags], "test")
    assert differing(audit_settings(changed, "right")) == set()


def test_the_recipes_have_what_they_say() -> None:
    found = {
        name: differing(audit_settings(parse_config(["--recipe", name], "test")[0], name))
        for name in ("deit", "deit_paper")
    }
    assert found == {"deit": {"repeated_augmentation"}, "deit_paper": {"qkv_bias"}}


def test_the_form_in_json_is_whole() -> None:
    described = audit_base().describe()
    assert list(described) == [
        *("subject", "kind", "equal", "differs", "cannot_be_seen", "rows", "notes")
    ]
    counts = [described[name] for name in ("equal", "differs", "cannot_be_seen")]
    assert counts == [len(CHECKLIST) - len(SMALL), len(SMALL), 0]
    fields = {"name", "section", "title", "paper", "source", "flag", "note", "found", "status"}
    assert all(set(row) == fields for row in described["rows"])
