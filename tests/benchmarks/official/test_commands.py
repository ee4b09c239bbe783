"""The command lines of both trainers."""

from pathlib import Path

import pytest

from benchmarks.official import commands
from benchmarks.official.run_deit import split_sizes
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config

FLAGS = commands.list_flags(Path("/a"), seed=2, epochs=6)


def ours() -> Config:
    command = commands.our_command(FLAGS, Path("/out"))
    return parse_config(command[2:], "test")[0]


def test_both_get_the_same_flags() -> None:
    deit = commands.Deit(Path("/deit"), Path("/venv/python"))
    theirs = commands.deit_command(deit, FLAGS, Path("/out"))
    assert theirs[0] == "/venv/python" and theirs[4] == "/deit"
    for command in (theirs, commands.our_command(FLAGS, Path("/out"))):
        start = command.index(FLAGS[0])
        assert command[start : start + len(FLAGS)] == FLAGS


def test_ours_draws_and_steps_as_deit_does() -> None:
    config = ours()
    assert config.mix.mixup_group == config.optim.batch_size == commands.BATCH
    assert config.augment.aug_repeats == 3 and config.optim.sched_lag == 1
    assert config.model.qkv_bias and not config.optim.sched_on_updates
    assert config.distill.teacher_input_size == config.data.input_size == commands.SIZE
    assert (config.run.seed, config.optim.epochs) == (2, 6)


@pytest.mark.parametrize("setting", ["aa", "reprob", "color_jitter"])
def test_augmentation_is_what_deit_has_by_default(setting: str) -> None:
    assert getattr(ours().augment, setting) == getattr(Config().augment, setting)


def test_the_sizes_of_the_student_do_not_reach_deits_parser() -> None:
    sizes, left = split_sizes(FLAGS)
    assert sizes == {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}
    assert not {"--patch-size", "--embed-dim", "--depth", "--num-heads"} & {*left}
    assert left[:2] == ["--model", "deit_tiny_distilled_patch16_224"]


def test_the_teachers_command_is_accepted() -> None:
    config = parse_config(commands.teacher_command(Path("/a"), 4, Path("/t"))[2:], "test")[0]
    assert config.model.model == commands.TEACHER and config.augment.aa == "none"
    assert config.distill.distillation_type == "none" and config.optim.epochs == 4


@pytest.mark.parametrize("flags", [commands.STUDENT, commands.SHARED, commands.OURS])
def test_the_page_has_the_flags(flags: list[str]) -> None:
    page = (commands.ROOT / "docs" / "coming-from-deit.md").read_text(encoding="utf-8")
    words = page.partition("## Beside the official trainer")[2].replace("`", " ").split()
    pairs = [*zip(words, words[1:], strict=False)]
    assert all(pair in pairs for pair in zip(flags[::2], flags[1::2], strict=True))
