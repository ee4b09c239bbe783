"""`fastdeit pack`: its report, its errors, its exit codes, and what signals leave."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdeit.commands.data.pack import pack_command, parse_shard_size
from fastdeit.config.cli import parse_config
from fastdeit.data.packing.job import ShardSize
from tests.support.images import write_shapes
from tests.support.launching import ROOT, clean_environment
from tests.support.packing import contents

FLAGS = ["--shard-size", "1", "--num-workers", "1", "--resize", "300"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "set")


def test_report_and_verification(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "val/stripe/02.jpg").write_bytes(b"damaged")
    out = tmp_path / "out"
    argv = [str(root), str(out), "--resize", "32", "--shard-size", "9"]
    assert pack_command(argv) == 0
    first, pixels, decoding, excluded, after = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: 24 images of train in 3 shards, 8 images of val in 1 shard, ")
    assert "times the source's" in first and "  decoding takes " in decoding
    assert "PSNR at 224 pixels" in pixels and "dB of 8% of their area (24 images)" in pixels
    assert excluded.startswith("  excluded: val/stripe/02.jpg: is no JPEG")
    words = shlex.split(after.removeprefix("  next: fastdeit train "))
    config, _ = parse_config(words, "fastdeit train")
    assert config.data.data_path == str(out) and config.distill.distillation_type == "none"
    assert pack_command(argv) == 0
    assert "4 parts were there before, with right checksums" in capsys.readouterr().out
    assert pack_command([str(out), "--verify"]) == 0
    assert capsys.readouterr().out.endswith("in 1 shard: all checksums are right\n")
    (out / "val-000000.tar").write_bytes(b"x")
    (out / "train-1.tar").write_bytes(b"x")
    assert pack_command([str(out), "--verify"]) == 1
    damaged, stranger = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"{out}: val-000000.tar: has 1 bytes, not ")
    assert stranger == f"{out}: train-1.tar: is no part of it"


def test_a_copy_and_a_folder_are_reported(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"train/circle/0{n}.{'png' if n % 3 == 0 else 'jpg'},{n % 2}\n" for n in range(6)]
    (root / "mine.csv").write_text("".join(lines))
    flags = ["--copy", "--format", "folder", "--train-split", "mine.csv", "--val-split", "mine.csv"]
    assert pack_command([str(root), str(tmp_path / "out"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "6 images of train in class folders, 6 images of val in class folders" in printed
    assert "  pixels are equal to the source's\n" in printed
    assert "note: a folder is listed class by class, not in the source's order" in printed


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["{root}"], "OUTPUT must be given (--help explains it)"),
        (["{root}", "{root}/x"], "OUTPUT must be outside of {root} (got '{root}/x')"),
        (["", "out"], "DATA must be given (--help explains it)"),
        (["{root}", "{root}"], "OUTPUT must be outside of {root} (got '{root}')"),
        (["{root}/no", "out"], "{root}/no: no such folder; a data set is a folder with train and"),
        (["{root}", "out", "--resize", "0"], "--resize must be 1 or more (got 0)"),
        (["{root}", "out", "--quality", "101"], "--quality must be 1 to 100 (got 101)"),
        (["{root}", "out", "--copy", "--quality", "80"], "--copy must be given without --resize, "),
        (["{root}", "out", "--shard-size", "0"], "--shard-size must be a number of images, or of"),
        (["{root}", "out", "--format", "zip"], "--format must be shards or folder (got 'zip')"),
        (["{root}", "--verify"], "{root}: holds no pack.json of a packing"),
        (["{root}", "out", "--verify"], "OUTPUT must be absent with --verify (got 'out')"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], argv: list[str], error: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        pack_command([word.format(root=root) for word in argv])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"fastdeit: error: {error.format(root=root)}")
    assert printed.count("\n") == 1
    assert not Path("out").exists()


def test_shard_sizes_are_images_or_bytes() -> None:
    assert parse_shard_size("5000") == ShardSize(images=5000)
    assert parse_shard_size("1.5MB") == ShardSize(bytes=1_500_000)
    assert parse_shard_size("2GiB") == ShardSize(bytes=2**31)
    for text in ("1.5", "-1", "MB", "5TB", "", "1e3", "9" * 20, "9" * 20 + "GB", "\u0663"):
        with pytest.raises(ValueError, match="--shard-size must be"):
            parse_shard_size(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a data set, `set`, and what an uninterrupted command made of it."""
    folder = tmp_path_factory.mktemp("whole")
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    for split, count in (("train", 24), ("val", 2)):
        (folder / "set" / split / "a").mkdir(parents=True)
        for number in range(count):
            file = folder / "set" / split / f"a/{number:02}.jpg"
            Image.fromarray(np.roll(noise, number, 0)).save(file, quality=50)
    assert pack_command([str(folder / "set"), str(folder / "out"), *FLAGS]) == 0
    return folder


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_signal_leaves_what_the_same_command_continues(
    whole: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastdeit", "pack", str(whole / "set"), str(out), *FLAGS]
    options: dict[str, Any] = {"cwd": ROOT, "env": clean_environment(), "start_new_session": True}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    while len(contents(out)) < 4 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, getattr(signal, name))
    _, printed = process.communicate(timeout=60)
    if name == "SIGINT":
        assert process.returncode == 130
        assert printed == f"{out}: interrupted; the same command continues\n"
    assert "pack.json" not in contents(out)
    assert pack_command(command[4:]) == 0
    assert contents(out) == contents(whole / "out")
