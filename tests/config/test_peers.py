"""Command lines of deit and timm, translated."""

import dataclasses
from pathlib import Path

import pytest

from fastdeit.config.cli import parse_config
from fastdeit.config.peers import list_notes, translate_flags
from fastdeit.config.schema import Config
from fastdeit.run.preflight import check_config
from tests.support.launching import ROOT


def parse(*argv: str) -> Config:
    return parse_config(argv, "test")[0]


BUILT_ANYWAY = """--opt adamw --sched=cosine --mixup-mode batch --recount 1 --train-interpolation
bicubic --device cuda --pin-mem --no-pin-mem --dist-eval --start_epoch 0 --data-set IMNET
--dist_url env:// --world_size=1 --distributed --drop 0.0 --vflip 0. --train-mode
--clip-mode norm"""


def test_flags_for_what_is_built_anyway_change_nothing() -> None:
    assert parse(*BUILT_ANYWAY.split()) == parse()


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("--ThreeAugment", "--aa 3a --reprob 0"),
        ("--ThreeAugment --reprob 0.25 --aa none", "--aa 3a --reprob 0"),
        ("--no-repeated-aug", "--no-repeated-aug"),
        ("--aug-repeats 0", "--no-repeated-aug"),
        ("--aug-repeats 3", "--aug-repeats 3"),
        ("--no-model-ema", "--no-model-ema"),
        ("--num_workers 10", "--num-workers 10"),
        ("-j 4", "--num-workers 4"),
        ("--workers=4", "--num-workers 4"),
        ("-b 128", "--batch-size 128"),
        ("--data-dir /data", "--data-path /data"),
        ("--data_dir=/data", "--data-path /data"),
        ("--input-size 3 192 192", "--input-size 192"),
        ("--img-size 192", "--input-size 192"),
        ("--crop-pct 0.9", "--eval-crop-ratio 0.9"),
        ("--kd-temperature 4", "--distillation-tau 4"),
        ("--kd-token-distill-type soft", "--distillation-type soft"),
        ("--mixup-mode pair", "--mixup-group 2"),
        ("--output_dir out --opt-betas 0.9 0.95", "--output-dir out --opt-betas 0.9 0.95"),
        ("--color-jitter 0.4 --lr -1 --aa none", "--color-jitter 0.4 --lr -1 --aa none"),
        ("--amp --amp-dtype bfloat16", "--precision auto"),
    ],
)
def test_another_name_of_a_flag_means_the_same(peer: str, own: str) -> None:
    translated = translate_flags(peer.split())
    if "-1" in translated:
        assert translated == own.split()
    else:
        assert parse(*translated) == parse(*own.split()) == parse(*peer.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--opt sgd", "--opt must be adamw, fusedadamw, lamb or fusedlamb (got 'sgd')"),
        ("--pin-mem=no", "--pin-mem must be without a value (got 'no')"),
        ("--lr 1 --pin-mem no", "--pin-mem must be without a value (got 'no')"),
        ("--data-dir a b", "--data-dir must be one value (got 'a b')"),
        ("--opt", "--opt must be adamw, fusedadamw, lamb or fusedlamb (got '')"),
        (
            "--data-set INAT",
            "--data-set must be IMNET, CIFAR, any, digits, cifar10 or cifar100 (got",
        ),
        ("--input-size 3 224 192", "--input-size must be a whole number (got '3 224 192')"),
    ],
)
def test_what_has_no_counterpart_is_refused_in_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(*argv.split())
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            "--eval --data-path /imagenet "
            "--resume https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
            "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth "
            "--data-path /imagenet --eval-crop-ratio 0.875",
        ),
        (
            "--model deit_base_patch16_384 --batch-size 8 --input-size 384 --eval --resume=w.pth "
            "--data-path /imagenet --eval-crop-ratio 1.0",
            "w.pth --data-path /imagenet --model deit_base_patch16_384 --eval-input-size 384 "
            "--eval-crop-ratio 1.0",
        ),
        ("--eval", "CHECKPOINT --eval-crop-ratio 0.875"),
    ],
)
def test_deits_eval_names_the_command_that_scores_the_same(argv: str, command: str) -> None:
    from fastdeit.commands.models.evaluate import EvaluateOptions
    from fastdeit.config.options import parse_options

    with pytest.raises(ValueError, match="a run evaluates by itself") as refused:
        parse(*argv.split())
    assert str(refused.value).endswith(f"scores a checkpoint: fastdeit evaluate {command}")
    parse_options(command.split(), EvaluateOptions, "fastdeit evaluate", "")


README = {
    "small": "--model deit_small_patch16_224 --batch-size 256 --data-path {data} "
    "--output_dir {out}",
    "tiny": "--model deit_tiny_patch16_224 --batch-size 256 --data-path {data} --output_dir {out}",
    "base": "--model deit_base_patch16_224 --data-path {data}",
    "distilled": "--model deit_base_distilled_patch16_224 --distillation-type hard --teacher-model "
    "regnety_160 --teacher-path https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth "
    "--use_volta32",
    "384": "--model deit_base_patch16_384 --batch-size 32 --finetune "
    "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth --input-size 384 "
    "--use_volta32 --nodes 2 --lr 5e-6 --weight-decay 1e-8 --epochs 30 --min-lr 5e-6",
}
"""The training commands of deit's README_deit.md, without the launcher."""

REVENGE = {
    "small LS": "--model deit_small_patch16_LS --data-path {data} --batch-size 256 --lr 4e-3 "
    "--epochs 800 --weight-decay 0.05 --sched cosine --input-size 224 --reprob 0.0 --nodes 1 "
    "--ngpus 8 --smoothing 0.0 --warmup-epochs 5 --drop 0.0 --seed 0 --opt fusedlamb --warmup-lr "
    "1e-6 --mixup .8 --drop-path 0.05 --cutmix 1.0 --unscale-lr --repeated-aug --bce-loss "
    "--color-jitter 0.3 --ThreeAugment",
    "base LS": "--model deit_base_patch16_LS --data-path {data} --batch-size 64 --lr 1e-5 --epochs "
    "20 --weight-decay 0.1 --sched cosine --input-size 224 --reprob 0.0 --nodes 1 --ngpus 8 "
    "--smoothing 0.1 --warmup-epochs 5 --drop 0.0 --seed 0 --opt adamw --warmup-lr 1e-6 --mixup .8 "
    "--drop-path 0.2 --cutmix 1.0 --unscale-lr --aa rand-m9-mstd0.5-inc1 --no-repeated-aug",
}
"""Of its README_revenge.md, where --batch, --node and --gpu stand for --batch-size, --nodes and
--ngpus, and --nb-classes, which deit has not, is there too."""

ADDED = {
    "small LS": ["--distillation-type none"],
    "base LS": ["--distillation-type none"],
    "small": ["--distillation-type none"],
    "tiny": ["--distillation-type none"],
    "base": ["--distillation-type none"],
    "distilled": ["--data-path {data}"],
    "384": ["--batch-size 512", "--distillation-type none", "--data-path {data}"],
}
"""The flags that each lacks, in the order in which the errors ask for them."""


def start(argv: str) -> str:
    """Return the error of a command before any work, "" if it starts."""
    try:
        check_config(parse(*argv.split()), 1)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", README | REVENGE)
def test_a_command_of_deits_readme_starts_with_the_flags_that_its_errors_ask_for(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "data" / "train" / "class").mkdir(parents=True)
    paths = {"data": tmp_path / "data", "out": tmp_path / "out"}
    command = (README | REVENGE)[name].format(**paths)
    for added in ADDED[name]:
        flag, value = added.split()
        error = start(command)
        asked = f"{flag} {value}" in error or error.startswith(f"{flag} must be {value}")
        assert asked or error.startswith("--data-path must be the folder of a data set")
        command = f"{command} {added.format(**paths)}"
    assert start(command) == ""


def test_the_recipe_of_deit3_is_the_command_of_deit() -> None:
    command = REVENGE["small LS"].format(data="d").replace("--batch-size 256", "--batch-size 2048")
    theirs = parse(*command.split(), "--distillation-type", "none")
    ours = parse("--recipe", "deit3", "--data-path", "d")
    assert theirs.optim == ours.optim
    assert theirs.mix == ours.mix
    assert theirs.distill == ours.distill
    assert theirs.model == ours.model
    assert theirs.augment == dataclasses.replace(ours.augment, aug_repeats=2)


def test_the_commands_of_the_page_for_users_of_deit_are_complete() -> None:
    page = (ROOT / "docs" / "coming-from-deit.md").read_text(encoding="utf-8")
    commands = page.replace("\\\n", " ").split("deepspeed fastdeit/train.py ")
    configs = [parse(*line.splitlines()[0].split()) for line in commands if "--recipe" in line]
    assert len(configs) == len(README)
    for config in configs:
        assert config.data.data_path and config.optim.batch_size in (512, 1024)
        is_distilled = "_distilled_" in config.model.model
        assert is_distilled == (config.distill.distillation_type == "hard")


def notes(argv: str) -> list[str]:
    return list_notes(argv.split(), parse(*argv.split()))


def test_a_command_of_deit_says_once_what_means_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = notes("--model deit_tiny_distilled_patch16_224 --batch-size 256 --output_dir out")
    batch, copies, kind, bias, more = said
    assert batch.endswith("in deit and timm that of one GPU: on 4 GPUs add --batch-size 1024")
    assert copies.endswith("in deit 3: --aug-repeats 3")
    assert kind.startswith("distillation is hard, ") and kind.endswith("--distillation-type none")
    assert bias.endswith("--qkv-bias") and "docs/coming-from-deit.md" in more


@pytest.mark.parametrize(
    ("argv", "gpus", "world_size"),
    [
        ("-b 256", 4, "1"),
        ("-b 256", 8, "8"),
        ("-b 256", 4, ""),
        ("-b 256 --nodes 3", 24, "8"),
        ("-b 256 --nodes x", 16, "1"),
        ("-b 256 --nodes ²", 16, "1"),
    ],
)
def test_the_batch_of_deit_is_that_of_its_gpus(
    argv: str, gpus: int, world_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert notes(argv)[0].endswith(f"on {gpus} GPUs add --batch-size {256 * gpus}")


def test_what_a_command_sets_is_no_difference() -> None:
    chosen = "--aug-repeats 2 --kd-token-distill-type hard --no-qkv-bias --output_dir out"
    assert len(notes(chosen)) == 1
    given = "--aug-repeats 3 --distillation-type none --qkv-bias --output_dir out"
    assert len(notes(given)) == len(notes("--recipe deit_paper --pin-mem --distillation-type hard"))
    assert len(notes(given)) == 1
    assert any("--unscale-lr" in note for note in notes("--lr 1e-3 -b 128"))
    assert not any("--unscale-lr" in note for note in notes("--lr 1e-3 --opt adamw"))
    assert any("--mixup-group 256" in note for note in notes("--mixup-mode batch"))


def test_a_command_with_our_flags_alone_has_no_notes() -> None:
    own = "--batch-size 256 --output-dir a_b --lr 1 --aug-repeats 3 --local_rank=0 --data-set any"
    assert notes(own) == []


def test_flags_without_effect_are_listed() -> None:
    argv = "--nodes 2 --use_volta32 --momentum=0.9 --opt adamw"
    assert "without effect here: --nodes 2, --momentum=0.9" in notes(argv)
    assert not any("without effect" in note for note in notes(BUILT_ANYWAY))


def test_the_size_of_the_teachers_images_is_a_difference() -> None:
    small = "--input-size 48 --teacher-path a.pth --output_dir out"
    assert any("--teacher-input-size 48" in note for note in notes(small))
    for same in ("--teacher-input-size 48", "--input-size 224", "--distillation-type none"):
        assert not any("--teacher-input-size" in note for note in notes(f"{small} {same}"))
