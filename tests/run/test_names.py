"""Names that no terminal, figure or text file takes as they are: a run with them ends well."""

import os
from pathlib import Path

import pytest
from PIL import Image

from fastdeit.commands.data.index import index_command
from fastdeit.commands.data.preview import preview_command
from fastdeit.commands.runs.replay import replay_command
from fastdeit.commands.runs.train import train_command
from fastdeit.data import table
from fastdeit.data.indexing import build_index
from fastdeit.report.build import write_report
from fastdeit.storage.run_folder import RunFolder
from tests.config.test_flags import split as split_words
from tests.support.images import CLASSES, write_shapes

NAMES = (b"K\xe4se", b"$_{x \x1b[31m\n", "\u202e[b] :skull:".encode())
SMALL = (
    "--model deit_tiny_distilled_patch16_224 --input-size 16 --patch-size 8 --embed-dim 32 "
    "--depth 1 --num-heads 1 --distillation-type none --batch-size 8 --epochs 1 --warmup-epochs 0 "
    "--num-workers 1 --log-steps 1"
).split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / os.fsdecode(b"data\xe9 [b]")
    write_shapes(folder, train=4, val=2)
    for split in ("train", "val"):
        for old, new in zip(CLASSES, NAMES, strict=True):
            (folder / split / old).rename(folder / split / os.fsdecode(new))
    (folder / "train" / os.fsdecode(NAMES[0]) / "\x1b[2J.jpg").write_bytes(b"damaged")
    return folder


def train(root: Path, output: Path) -> RunFolder:
    assert train_command(["--data-path", str(root), *SMALL, "--output-dir", str(output)]) == 0
    return RunFolder(output)


def assert_plain(text: str) -> None:
    text.encode()
    assert all(char.isprintable() for char in text.replace("\n", "")), ascii(text)


def test_every_command_takes_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / os.fsdecode(b"run\xe9")
    assert index_command([str(root)]) == 0
    assert preview_command(["--data-path", str(root), "-o", str(output / "p.png"), *SMALL]) == 0
    folder = train(root, output)
    assert replay_command([str(output), "--step", "0"]) == 0
    train(root, output)
    assert_plain("".join(capsys.readouterr()))
    assert folder.is_finished
    with Image.open(output / "p.png") as drawn:
        drawn.verify()
    write_report([output], tmp_path / "report.html")
    assert "\\xe9" in (tmp_path / "report.html").read_text(encoding="utf-8")
    for file in output.rglob("*.json*"):
        file.read_text(encoding="utf-8")


def test_table_at_a_path_that_is_not_utf8_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_index(root, "train", bad_images="skip")
    for place in (root / "train", *(root / "train").rglob("*")):
        os.utime(place, (1e9, 1e9))
    build_index(root, "train", bad_images="skip")
    monkeypatch.setattr("fastdeit.data.indexing.build_table", None)
    again = build_index(root, "train", bad_images="skip")
    assert again.classes == before.classes == tuple(sorted(map(os.fsdecode, NAMES)))
    assert table.table_places(root, "train", None)[0].is_file()


def test_next_command_runs_as_printed(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL[2:4], *SMALL[10:], "--model", "test_resnet"]
    assert train_command(["--data-path", str(root), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    command = next(line for line in lines if line.startswith("next: "))
    start, name, *words = split_words(command.removeprefix("next: "))
    assert (start, name, words[:2]) == ("fastdeit", "train", ["--data-path", str(root)])
    short = "--epochs 1 --embed-dim 32 --depth 1 --num-heads 1 --num-workers 1".split()
    assert train_command([*words, *short]) == 0
    said = capsys.readouterr().out
    assert "test_resnet: 0.4 M parameters" in said and "agrees with teacher" in said
    assert RunFolder(Path("runs/deit_student")).summary.is_file()


def test_preview_that_cannot_be_drawn_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        preview_command(["--data-path", str(root), "-o", str(tmp_path / "file" / "p.png"), *SMALL])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("fastdeit: error: --output must be ")
