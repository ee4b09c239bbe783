"""Audits of run folders, settings and checkpoints, as files have them."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from fastdeit.audit.arguments import read_arguments
from fastdeit.audit.build import audit_run, audit_settings, audit_source
from fastdeit.audit.findings import Audit, Row
from fastdeit.config.schema import Config
from fastdeit.models.student import build_student
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.format import Manifest
from fastdeit.teacher_cache.writer import create_cache
from tests.support.images import CLASSES
from tests.support.trained import write_student

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}
"""Of the student of `write_student`."""

DEIT_ARGS: dict[str, Any] = {
    **{"batch_size": 256, "world_size": 4, "distributed": True, "epochs": 300},
    **{"opt": "adamw", "opt_betas": None, "weight_decay": 0.05, "clip_grad": None},
    **{"sched": "cosine", "lr": 1e-3, "min_lr": 1e-5, "warmup_epochs": 5},
    **{"aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3, "ThreeAugment": False, "src": False},
    **{"smoothing": 0.1, "repeated_aug": True, "reprob": 0.25, "remode": "pixel"},
    **{"mixup": 0.8, "cutmix": 1.0, "cutmix_minmax": None, "mixup_prob": 1.0},
    **{"mixup_switch_prob": 0.5, "bce_loss": False, "cosub": False, "drop": 0.0, "drop_path": 0.1},
    **{"distillation_type": "hard", "distillation_alpha": 0.5, "distillation_tau": 1.0},
    **{"teacher_model": "test_resnet", "model": "deit_tiny_distilled_patch16_224"},
    **{"input_size": 224},
}
"""What deit's main.py stores of a run of the paper's recipe on 4 GPUs."""

TIMM_ARGS: dict[str, Any] = {
    **{"batch_size": 128, "world_size": 2, "grad_accum_steps": 4, "epochs": 300},
    **{"opt": "adamw", "opt_betas": [0.9, 0.999], "weight_decay": 0.05, "clip_grad": None},
    **{"sched": "cosine", "lr": 1e-3, "min_lr": 0, "warmup_epochs": 5, "layer_decay": None},
    **{"aa": "rand-m9-mstd0.5-inc1", "smoothing": 0.1, "aug_repeats": 3, "reprob": 0.25},
    **{"remode": "pixel", "mixup": 0.8, "cutmix": 1.0, "cutmix_minmax": None, "mixup_prob": 1.0},
    **{"mixup_switch_prob": 0.5, "drop": 0.0, "drop_path": 0.1, "img_size": None},
    **{"model": "deit_tiny_distilled_patch16_224", "kd_model_name": "test_resnet"},
    **{"kd_distill_type": "token", "kd_token_distill_type": "hard", "distill_loss_weight": 1.0},
    **{"task_loss_weight": 1.0, "kd_temperature": 4.0},
}
"""What timm's train.py stores of a run with the same settings on 2 GPUs."""


ABSENT = {"clip_grad", "crop_and_flip"}
"""Items that have what the paper has where an argument is None or empty."""


def rows_of(audit: Audit) -> dict[str, Row]:
    return {row.name: row for row in audit.rows}


def names(audit: Audit, status: str) -> set[str]:
    return {row.name for row in audit.rows if row.status == status}


def write_run(folder: Path, config: Config, inputs: Any = None) -> Path:
    """Write the settings of a run beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.config.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    if inputs is not None:
        run.inputs.write_text(json.dumps(inputs))
    return folder


def configure(**sections: Any) -> Config:
    """Return the settings of the student of `write_student`."""
    model = {"model": "deit_tiny_distilled_patch16_224", **SMALL}
    config = Config().replace(
        data={"input_size": 32}, model=model, distill={"teacher_model": "test_resnet"}
    )
    return config.replace(**sections)


@pytest.fixture(scope="module")
def deit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint of deit, with weights of timm that have trained."""
    drawn = torch.Generator().manual_seed(0)
    network = timm.create_model("deit_tiny_distilled_patch16_224", depth=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=drawn))
    path = tmp_path_factory.mktemp("deit") / "checkpoint.pth"
    args = argparse.Namespace(**DEIT_ARGS)
    torch.save({"model": network.state_dict(), "args": args, "epoch": 3}, path)
    return path


def rewrite(path: Path, place: Path, **changes: Any) -> Path:
    """Write a training checkpoint with other arguments; None in `changes` for no args at all."""
    content = torch.load(path, weights_only=False)
    args = changes.get("args", {**vars(content["args"]), **changes})
    content["args"] = argparse.Namespace(**args)
    torch.save(content, place)
    return place


def test_a_run_has_what_its_settings_build_and_its_weights_store(tmp_path: Path) -> None:
    folder = write_run(write_student(tmp_path / "run", CLASSES), configure())
    audit = audit_run(folder)
    settings = audit_settings(configure(), "the same")
    assert [row.status for row in audit.rows] == [row.status for row in settings.rows]
    assert names(audit, "differs") == {"size", "resolution", "repeated_augmentation"}
    assert (audit.kind, audit.notes) == ("run", ())


def test_the_weights_of_a_run_decide_over_its_settings(tmp_path: Path) -> None:
    """A folder with the weights of another model: without the distillation token."""
    plain = write_student(tmp_path / "run", CLASSES, distilled=False)
    audit = audit_source(write_run(plain, configure()))
    rows = rows_of(audit)
    assert rows["distillation_token"].found == "none"
    assert rows["positions"].found == "17 = 16 + 1, learned"
    assert rows["heads_at_inference"].found == "one head"
    assert "the weights of deit_tiny_patch16_224" in audit.notes[0]


def test_a_bias_that_weights_turned_on_is_seen(tmp_path: Path) -> None:
    student = build_student(
        "deit_tiny_distilled_patch16_224", num_classes=5, image_size=32, qkv_bias=True, **SMALL
    )
    bias = student.get_parameter("blocks.0.attn.qkv.bias")
    with torch.no_grad():
        bias.add_(1)
    folder = write_run(tmp_path / "run", configure(model={"finetune": "gone.safetensors"}))
    metadata = {"model": "deit_tiny_distilled_patch16_224", "num_heads": "3"}
    save_file(student.state_dict(), RunFolder(folder).model, metadata=metadata)
    rows = rows_of(audit_run(folder))
    assert (rows["qkv_bias"].found, rows["qkv_bias"].status) == ("in 3 of 3 blocks", "differs")
    assert rows["initial_weights"].found == "those of gone.safetensors"
    assert rows["optimizer"].status == "equal"


def test_a_frozen_backbone_shows_in_a_run(tmp_path: Path) -> None:
    frozen = configure(model={"finetune": "gone.safetensors", "trainable": "heads"})
    rows = rows_of(audit_run(write_run(write_student(tmp_path / "run", CLASSES), frozen)))
    assert rows["positions"].found == "18 = 16 + 2, fixed"
    assert (rows["drop_path"].found, rows["drop_path"].status) == ("none", "differs")


def test_a_run_with_the_model_of_its_weights_names_it_nowhere_else(tmp_path: Path) -> None:
    empty = configure(model={"finetune": "gone.safetensors", "model": "", **dict.fromkeys(SMALL)})
    audit = audit_source(f"local-dir:{write_run(write_student(tmp_path / 'run', CLASSES), empty)}")
    assert audit.notes == () and audit.count("cannot be seen") == 0
    assert "width 24 in 3 heads" in rows_of(audit)["size"].found


def test_a_run_before_its_first_checkpoint_is_read_from_its_settings(tmp_path: Path) -> None:
    audit = audit_source(write_run(tmp_path / "run", configure()))
    assert not names(audit, "cannot be seen")
    assert audit.notes == (f"{tmp_path / 'run'}: no weights yet",)


def test_the_recorded_teacher_decides_over_the_named_one(tmp_path: Path) -> None:
    for number, (teacher, status) in enumerate(
        [
            ({"name": "test_vit"}, "differs"),
            ({"name": ["test_resnet", "test_vit"]}, "differs"),
            ({"name": "torchscript"}, "cannot be seen"),
            ({"name": "test_resnet"}, "equal"),
            (None, "equal"),
            (3, "equal"),
        ]
    ):
        folder = write_run(tmp_path / f"{number}", configure(), {"teacher": teacher})
        assert rows_of(audit_run(folder))["teacher"].status == status, teacher


def test_the_teacher_of_a_cache_decides_over_the_named_one(tmp_path: Path) -> None:
    facts = {"teacher": {"name": "test_vit"}}
    create_cache(tmp_path / "cache", Manifest("hard", 1, num_classes=5, samples=8, facts=facts))
    for cache, status in (("cache", "differs"), ("nothing", "cannot be seen")):
        config = configure(distill={"cache": str(tmp_path / cache)})
        assert rows_of(audit_settings(config, "cached"))["teacher"].status == status


def test_a_program_as_a_teacher_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = configure(distill={"teacher_model": f"pathlib:Path({str(marker)!r}).touch"})
    assert rows_of(audit_settings(config, "program"))["teacher"].status == "cannot be seen"
    assert not marker.exists()


def test_a_checkpoint_in_a_run_folder_has_its_settings(tmp_path: Path) -> None:
    folder = write_run(write_student(tmp_path / "run", CLASSES), configure())
    audit = audit_source(RunFolder(folder).model)
    assert (audit.kind, audit.count("cannot be seen")) == ("run", 0)


def test_deits_checkpoint_has_all_but_the_bias(deit: Path) -> None:
    audit = audit_source(deit)
    assert names(audit, "differs") == {"qkv_bias", "size"}
    assert names(audit, "cannot be seen") == {"initial_weights"}
    assert rows_of(audit)["qkv_bias"].found == "in 2 of 2 blocks"


def test_timms_checkpoint_has_the_same(deit: Path, tmp_path: Path) -> None:
    path = rewrite(deit, tmp_path / "timm.pth.tar", args=TIMM_ARGS)
    audit = audit_source(path)
    assert names(audit, "differs") == {"qkv_bias", "size"}
    assert names(audit, "cannot be seen") == {"initial_weights", "crop_and_flip"}


def _name_case(value: object) -> str:
    """Return the same id in every process: sets have no order."""
    return ",".join(sorted(value)) if isinstance(value, set) else str(value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"opt": "sgd"}, {"optimizer"}),
        ({"opt_betas": 3}, {"optimizer"}),
        ({"weight_decay": 0.3}, {"optimizer"}),
        ({"lr": 5e-4}, {"learning_rate"}),
        ({"world_size": 2, "lr": 5e-4}, {"batch_size"}),
        ({"sched": "step"}, {"schedule"}),
        ({"min_lr": 1e-3}, {"schedule"}),
        ({"warmup_epochs": 0, "epochs": 400}, {"warmup", "epochs"}),
        ({"clip_grad": 1.0}, {"clip_grad"}),
        ({"aa": "original"}, {"rand_augment"}),
        ({"aa": None}, {"rand_augment"}),
        ({"ThreeAugment": True, "src": True}, {"rand_augment", "crop_and_flip"}),
        ({"reprob": 0.0}, {"erasing"}),
        ({"mixup": 0.0}, {"mixup"}),
        ({"cutmix_minmax": [0.2, 0.8]}, {"cutmix"}),
        ({"repeated_aug": False}, {"repeated_augmentation"}),
        ({"distributed": False}, {"repeated_augmentation"}),
        ({"smoothing": 0.0}, {"smoothing"}),
        ({"bce_loss": True}, {"label_loss"}),
        ({"distillation_type": "none"}, {"distillation", "loss_weights", "teacher"}),
        (
            {"distillation_type": "soft", "distillation_alpha": 0.1},
            {"distillation", "loss_weights"},
        ),
        ({"teacher_model": "test_vit"}, {"teacher"}),
        ({"drop": 0.1}, {"dropout"}),
        ({"drop_path": 0.2}, {"drop_path"}),
        ({"model": "deit_small_patch16_LS"}, {"drop_path"}),
    ],
    ids=_name_case,
)
def test_a_changed_argument_shows_in_its_items_alone(
    changes: dict[str, Any], expected: set[str]
) -> None:
    found = read_arguments(DEIT_ARGS | changes, depth=12)
    assert {name for name, finding in found.items() if finding.is_equal is False} == expected


def test_arguments_of_other_types_decide_nothing() -> None:
    values: list[Any] = [[], {}, "x", 10**400, float("nan"), None]
    for value in values:
        found = read_arguments(dict.fromkeys({**DEIT_ARGS, **TIMM_ARGS}, value), depth=12)
        assert not {name for name, finding in found.items() if finding.is_equal} - ABSENT
    assert read_arguments({}, depth=12) == {}


@pytest.mark.parametrize("name", sorted({**DEIT_ARGS, **TIMM_ARGS}))
def test_an_argument_of_another_type_is_never_equal(name: str) -> None:
    for args in (DEIT_ARGS, TIMM_ARGS):
        usual = read_arguments(args, depth=12)
        found = read_arguments(args | {name: ["odd"]}, depth=12)
        changed = {row for row in usual if found.get(row) != usual[row]}
        assert not {row for row in changed & found.keys() if found[row].is_equal}


def test_a_long_text_in_a_file_is_cut_and_printable() -> None:
    odd = "\x1b[31m" * 10_000
    changes = dict.fromkeys(("opt", "aa", "sched", "teacher_model", "model"), odd)
    for finding in read_arguments(DEIT_ARGS | changes | {"opt_betas": [odd]}, 12).values():
        assert len(finding.text) < 200 and finding.text.isprintable()


def test_plain_weights_show_the_model_alone(tmp_path: Path) -> None:
    student = build_student("deit_tiny_distilled_patch16_224", num_classes=5)
    path = tmp_path / "plain.safetensors"
    save_file(student.state_dict(), path)
    audit = audit_source(path)
    seen = {row.name for row in audit.rows if row.status != "cannot be seen"}
    assert seen == {
        *("distillation_token", "positions", "pre_norm", "qkv_bias", "size", "layer_scale"),
        *("heads_at_inference", "resolution"),
    }
    assert names(audit, "differs") == set()
    assert "no command line" in audit.notes[1]


def test_weights_of_a_convnet_are_no_vision_transformer(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    args = argparse.Namespace(model="test_resnet")
    torch.save({"state_dict": timm.create_model("test_resnet").state_dict(), "args": args}, path)
    audit = audit_source(path)
    assert rows_of(audit)["distillation_token"].found == "test_resnet is no Vision Transformer"
    assert not names(audit, "equal")


def test_what_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        audit_source(tmp_path / "nothing.pth")
    folder = write_run(tmp_path / "run", configure())
    RunFolder(folder).model.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        audit_run(folder)


def test_an_audit_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    audit_settings(configure(model={"model": "test_vit"}), "timm")
    assert torch.equal(torch.get_rng_state(), before)
