"""Defaults, precedence and errors of the configuration and the command line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastdeit.config.cli import parse_config
from fastdeit.config.flags import check_flags
from fastdeit.config.parse import parse_rand_augment
from fastdeit.config.recipes import RECIPES
from fastdeit.config.recipes.follow import follow_with_student
from fastdeit.config.schema import Config
from fastdeit.plan.build import build_plan
from fastdeit.plan.spec import PlanSpec
from fastdeit.training.zero.config import deepspeed_config


def parse(*argv: str) -> Config:
    return parse_config(argv, "test")[0]


DEFAULTS: dict[str, dict[str, Any]] = {
    "optim": {
        "lr": 5e-4,
        "weight_decay": 0.05,
        "epochs": 300,
        "batch_size": 1024,
        "warmup_epochs": 5,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "opt_betas": (0.9, 0.999),
        "opt_eps": 1e-8,
        "clip_grad": None,
        "model_ema_decay": 0.99996,
        "scaled_lr": 1e-3,
    },
    "mix": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
    "distill": {
        "distillation_type": "hard",
        "distillation_alpha": 0.5,
        "distillation_tau": 3,
    },
    "augment": {"reprob": 0.25, "aug_repeats": 2},
    "data": {"eval_crop_ratio": 0.875},
    "model": {"qkv_bias": False, "drop_path": 0.1},
}


@pytest.mark.parametrize("section", DEFAULTS)
def test_defaults_are_those_of_the_paper(section: str) -> None:
    found = getattr(Config(), section)
    assert {name: getattr(found, name) for name in DEFAULTS[section]} == DEFAULTS[section]


DEIT: dict[str, dict[str, Any]] = {
    "optim": {
        "epochs": 300,
        "batch_size": 1024,
        "lr": 5e-4,
        "unscale_lr": False,
        "weight_decay": 0.05,
        "dist_token_decay": True,
        "opt_eps": 1e-8,
        "opt_betas": (0.9, 0.999),
        "clip_grad": None,
        "layer_decay": None,
        "warmup_epochs": 5,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "sched_on_updates": False,
        "sched_lag": 1,
        "model_ema": True,
        "model_ema_decay": 0.99996,
        "model_ema_warmup": False,
    },
    "mix": {
        "mixup": 0.8,
        "cutmix": 1.0,
        "cutmix_minmax": None,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_group": 256,
        "smoothing": 0.1,
    },
    "distill": {
        "teacher_model": "regnety_160",
        "distillation_alpha": 0.5,
        "distillation_tau": 1.0,
        "distillation_legacy": True,
        "bce_loss": False,
    },
    "augment": {
        "aa": "rand-m9-mstd0.5-inc1",
        "color_jitter": 0.3,
        "src": False,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "reprob": 0.25,
        "remode": "pixel",
        "repeated_aug": True,
        "aug_repeats": 3,
    },
    "model": {"qkv_bias": True, "drop_path": 0.1, "pos_embed_antialias": False},
    "data": {"input_size": 224, "eval_crop_ratio": 0.875},
}
"""The settings of deit's main.py (facebookresearch/deit, 7e160fe), on 4 GPUs of 256 images."""


@pytest.mark.parametrize("section", DEIT)
def test_the_recipe_deit_paper_has_the_values_of_deit(section: str) -> None:
    found = getattr(RECIPES["deit_paper"](), section)
    assert {name: getattr(found, name) for name in DEIT[section]} == DEIT[section]


def test_a_tiny_batch_keeps_the_rate_at_its_peak() -> None:
    optim = parse("--batch-size", "8").optim
    assert optim.final_lr == optim.scaled_lr == 5e-4 * 8 / 512
    assert Config().optim.final_lr == 1e-5


def test_flags_beat_file_beats_recipe(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("optim: {epochs: 7, lr: 0.25}\naugment: {scale: [0.5, 1]}\n")
    config = parse(
        "--recipe",
        "digits",
        "--config",
        str(file),
        "--lr=0.5",
        "--no-model-ema",
        "--micro_batch",
        "8",
    )
    assert config.optim.epochs == 7 and config.optim.lr == 0.5 and not config.optim.model_ema
    assert (
        config.optim.batch_size == RECIPES["digits"]().optim.batch_size
        and config.optim.micro_batch == 8
    )
    assert config.augment.scale == (0.5, 1)
    assert config.run.output_dir == "runs/digits"


@pytest.mark.parametrize("spelling", ["digits_teacher", "digits-teacher"])
def test_both_spellings_of_a_recipe_name_one_folder(spelling: str) -> None:
    config, recipe = parse_config(["--recipe", spelling], "test")
    assert recipe == "digits_teacher" and config.run.output_dir == "runs/digits_teacher"
    assert follow_with_student(config, recipe, "runs/digits_teacher")[1] == "digits"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_written_config_repeats_the_run(recipe: str, tmp_path: Path) -> None:
    config = parse(
        "--recipe",
        recipe,
        "--seed",
        "3",
        "--cutmix-minmax",
        "0.2",
        "0.5",
        "--output-dir",
        str(tmp_path),
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert parse("--config", str(file)) == config


def test_the_launchers_rank_flag_is_accepted() -> None:
    assert parse("--local_rank=1", "--lr", "1") == parse("--lr", "1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "nope"], "--recipe must be one of deit"),
        (["--config", "nowhere.yaml"], "--config must be an existing file (got nowhere.yaml)"),
        (["--mixup-mode", "elem"], "--mixup-group"),
    ],
)
def test_wrong_starting_points_are_named(argv: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        parse(*argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "33"], "--batch-size must be an even number of at least 2 (got 33)"),
        (["--micro-batch", "3"], "--micro-batch must be an even number of at least 2 (got 3)"),
        (["--offload-optimizer"], "--zero-stage must be 2 or 3 with --offload-optimizer (got 1)"),
        (["--aa", "rand-m9-inc0"], "--aa must be none, 3a, or as rand-m9-mstd0.5-inc1"),
        (["--drop-path", "1.5"], "--drop-path must be at least 0 and below 1 (got 1.5)"),
        (["--bce-loss"], "--smoothing must be 0 with --bce-loss (got 0.1)"),
        (["--hflip", "1.5"], "--hflip must be a probability, from 0 to 1 (got 1.5)"),
        (["--mixup", "-1"], "--mixup must be 0 or more (got -1.0)"),
        (["--mixup-group", "3"], "--mixup-group must be an even number of at least 2 (got 3)"),
        (
            ["--ratio", "2", "1"],
            "--ratio must be two numbers above 0, the smaller one first (got 2.0 1.0)",
        ),
        (["--scale", "0.1", "2"], "--scale must be two numbers above 0 and at most 1, the smaller"),
        (["--cutmix-minmax", "0", "1"], "--cutmix-minmax must be two numbers above 0"),
        (["--src", "--input-size", "4"], "--input-size must be 5 or more with --src (got 4)"),
        (["--opt-betas", "0.9", "1"], "--opt-betas must be two numbers, at least 0 and below 1"),
        (["--weight-decay", "-1"], "--weight-decay must be 0 or more (got -1.0)"),
        (["--layer-decay", "0"], "--layer-decay must be above 0 and at most 1 (got 0.0)"),
        (
            ["--batch-size", "8", "--lr", "1e-4"],
            "--min-lr must be 0 or more, at most the peak rate, --lr 0.0001 x 8 / 512 = 1.5625e-06"
            " (got 1e-05)",
        ),
        (
            ["--unscale-lr", "--warmup-lr", "0.1"],
            "--warmup-lr must be 0 or more, at most the peak rate, --lr 0.0005 (got 0.1)",
        ),
        (["--sched-lag", "1"], "--sched-lag must be 0, or more with --no-sched-on-updates (got 1)"),
    ],
)
def test_values_that_are_not_allowed_are_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(*argv)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--zero-stage 7", "--zero-stage must be 0, 1, 2 or 3 (got '7')"),
        ("--lr fast", "--lr must be a number (got 'fast')"),
        ("--lr", "--lr must be a number (got '')"),
        ("--lr 1 2", "--lr must be a number (got '1 2')"),
        ("--seed=1.5", "--seed must be a whole number (got '1.5')"),
        ("--depth x", "--depth must be a whole number (got 'x')"),
        ("--scale 0.1", "--scale must be 2 numbers (got '0.1')"),
        ("--opt-betas 0.9 x", "--opt-betas must be 2 numbers (got '0.9 x')"),
        ("--model-ema yes", "--model-ema must be without a value (got 'yes')"),
        ("--data-path", "--data-path must be one value (got '')"),
        ("--batch-sise 4", "--batch-sise is not a flag; near: --batch-size, --patch-size"),
        ("--drop-pth 0", "--drop-pth is not a flag; near: --drop-path"),
        ("--no-lr 1", "--no-lr is not a flag; near: --no-src, --min-lr"),
        ("--xyzzy", "--xyzzy is not a flag"),
        (
            "--recipe trasnfer",
            f"--recipe must be one of {', '.join(RECIPES)} (got 'trasnfer'); near: transfer",
        ),
        ("--lr inf", "--lr must be finite (got inf)"),
        ("--warmup-epochs inf", "--warmup-epochs must be finite (got inf)"),
        ("--mean nan 0 0", "--mean must be finite (got nan 0.0 0.0)"),
        ("--step-limit inf", "--step-limit must be finite (got inf)"),
        ("/data --lr 1", "'/data' belongs to no flag; the data set's folder is --data-path"),
    ],
)
def test_flags_and_values_that_do_not_exist_are_refused_in_one_line(
    argv: str, message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        parse(*argv.split())
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "argv",
    ["--lr -1e-3", "--depth None", "--clip-grad 1", "--cutmix-minmax 0.2 0.5", "--no-model-ema"],
)
def test_values_of_every_type_pass_the_check_as_they_pass_tyro(argv: str) -> None:
    check_flags(argv.split())


def test_help_is_printed_by_rank_0_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            parse("--help")
        assert end.value.code == 0
        printed[rank] = capsys.readouterr().out
    assert "--batch-size" in printed["0"] and printed["1"] == ""


@pytest.mark.parametrize(
    ("aa", "expected"),
    [
        ("rand-m9-mstd0.5-inc1", {"ra_magnitude": 9.0, "ra_std": 0.5}),
        (
            "rand-inc1-n3-m5-p0.7-mmax12",
            {"ra_layers": 3, "ra_magnitude": 5.0, "ra_prob": 0.7, "ra_max": 12.0, "ra_std": 0.0},
        ),
        ("rand-m9-mstdinf-inc1", {"ra_magnitude": 9.0, "ra_std": float("inf")}),
        ("rand-m9-mstd101-inc1", {"ra_std": float("inf")}),
    ],
)
def test_rand_augment_strings_are_parsed_as_timm_does(aa: str, expected: dict[str, float]) -> None:
    parsed = parse_rand_augment(aa)
    assert {name: parsed[name] for name in expected} == expected
    PlanSpec(**parsed)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"ra_layers": 2, "color_jitter": 0.0, "three_augment": False, "layers": 2}),
        (
            ["--aa", "none"],
            {"ra_layers": 0, "color_jitter": 0.3, "three_augment": False, "layers": 3},
        ),
        (
            ["--aa", "none", "--color-jitter", "0"],
            {"ra_layers": 0, "color_jitter": 0.0, "layers": 0},
        ),
        (
            ["--aa", "3a", "--src"],
            {"color_jitter": 0.3, "three_augment": True, "layers": 4, "simple_crop": True},
        ),
    ],
)
def test_augmentation_flags_reach_the_plan(flags: list[str], expected: dict[str, object]) -> None:
    spec = build_plan(parse_config(flags, "test")[0], np.full((9, 2), 300)).spec
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    "aa",
    [
        "rand",
        "rand-m9",
        "augmix-m3",
        "rand-mx-inc1",
        "rand-m9-inc1-w0",
        "rand-m-1-inc1",
        "original",
    ],
)
def test_unknown_rand_augment_strings_are_refused(aa: str) -> None:
    with pytest.raises(ValueError, match="--aa must be"):
        parse_rand_augment(aa)


@pytest.mark.parametrize(
    ("precision", "asked", "got"),
    [
        *(("fp32", asked, max(asked, 1)) for asked in range(4)),
        *(("bf16", asked, max(asked, 2)) for asked in range(4)),
    ],
)
def test_deepspeed_gets_the_safe_stage_and_fp32_gradients(
    precision: str, asked: int, got: int
) -> None:
    made = deepspeed_config(
        batch_size=64,
        micro_batch=8,
        grad_accum_steps=4,
        precision=precision,
        zero_stage=asked,
        clip_grad=None,
    )
    zero = made["zero_optimization"]
    assert (zero["stage"], zero["memory_efficient_linear"], zero["offload_optimizer"]) == (
        got,
        False,
        {"device": "none"},
    )
    assert made["data_types"]["grad_accum_dtype"] == made["communication_data_type"] == "fp32"
    assert made["bf16"]["enabled"] == (precision == "bf16") and made["gradient_clipping"] == 0.0
