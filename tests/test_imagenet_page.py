"""docs/imagenet.md as a newcomer follows it: each source of the images, then every command to its
end, on small data, with substitutes for Kaggle's client, curl, Slurm and the launcher."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastdeit.__main__ import COMMANDS
from fastdeit.data.indexing import build_index
from fastdeit.estimate import build
from tests.support.hub_server import HubServer, use_hub_server
from tests.support.launching import ROOT
from tests.support.page_commands import Command, read_call, read_lines, run
from tests.support.page_data import (
    make_hub_parquet,
    make_hub_shards,
    write_archives,
    write_kaggle,
    write_named,
)
from tests.support.pages import working_in

PAGE = "docs/imagenet.md"
# what is not run: a pattern, and why
NOT_RUN = {
    r"^make |^\. ": "sets up the environment",
    r"^tensorboard ": "serves pages until it is stopped",
    r"fastdeit doctor": "checks the machine for a minute; tests/doctor/",
    r"--real-labels|imagenetv2": "needs 1,000 classes; tests/inference/test_class_maps.py",
}
# what the page names and does not make
PREPARED = (
    "fastdeit cache build --recipe deit --data-path IMAGENET "
    "--teacher-path regnety_160-a5fe301d.pth --part {0}/3 -o CACHE-{0}"
)
TASK = "$SLURM_ARRAY_TASK_ID"


def read_sections() -> dict[str, list[str]]:
    """Return the commands of the page by the heading above them, in their order."""
    parts = re.split(r"^##+ (.+)$", (ROOT / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: read_lines(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = read_sections()
LINES = [line for lines in SECTIONS.values() for line in lines]


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page in the working directory; kaggle and curl do nothing there."""
    if any(re.search(pattern, line) for pattern in NOT_RUN):
        return
    array = re.search(r"--array 1-(\d+) ", line)
    if array:
        for task in range(1, int(array[1]) + 1):
            run_line(line.replace(array[0], "").replace(TASK, str(task)), monkeypatch)
    elif read_call(line):
        with monkeypatch.context() as patch:
            run(Command(PAGE, line), patch)
    else:
        substitutes = "kaggle() { :; }; curl() { :; }\n"
        subprocess.run(["bash", "-euc", substitutes + line], check=True)


def run_sections(names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_in(folder):
        for name in names:
            for line in SECTIONS[name]:
                run_line(line, monkeypatch)


# heading -> writes the files that its commands find in the folder
FILES: dict[str, Callable[[Path], None]] = {
    "Archives of image-net.org": write_archives,
    "Kaggle's archive": write_kaggle,
}
# heading -> the repository of the Hub, and its files
REPOSITORIES: dict[str, tuple[str, Callable[[Path], dict[str, bytes]]]] = {
    "Hugging Face, shards": ("timm/imagenet-1k-wds", make_hub_shards),
    "Hugging Face, Parquet files": ("ILSVRC/imagenet-1k", make_hub_parquet),
}


@pytest.fixture
def source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offer what the commands below a heading need."""
    if name in FILES:
        FILES[name](tmp_path)
        yield
        return
    repository, make = REPOSITORIES[name]
    with HubServer(make(tmp_path / "source"), repository).running() as server:
        use_hub_server(monkeypatch, server)
        yield


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("name", [*FILES, *REPOSITORIES])
def test_each_source_ends_with_a_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sections([name, "Look at it"], tmp_path, monkeypatch)
    train = build_index(tmp_path / "IMAGENET", "train")
    val = build_index(tmp_path / "IMAGENET", "val", classes=train.classes)
    assert (len(train), len(val), len(train.classes)) == (24, 12, 2)
    assert sorted(train.labels) == [0] * 12 + [1] * 12 and sorted(val.labels) == [0] * 6 + [1] * 6
    assert (tmp_path / "preview.png").is_file() and not (tmp_path / "PARQUET").exists()


def test_every_source_of_the_page_is_run() -> None:
    names = list(SECTIONS)
    first, last = names.index("The images"), names.index("Look at it")
    assert names[first + 1 : last] == [*FILES, *REPOSITORIES]


def test_each_reason_has_a_command() -> None:
    assert all(any(re.search(pattern, line) for line in LINES) for pattern in NOT_RUN)


def test_hours_and_cost_are_those_that_estimate_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the largest micro-batch is not in the table, and its search takes most of the time
    monkeypatch.setattr(build, "find_largest", lambda *_: 2)
    names = {
        "the run, h": ("time", "the run"),
        "devices, GPU-hours": ("time", "devices"),
        "memory of a GPU, GB": ("memory", "a GPU"),
        "cost at 3 a GPU-hour": ("cost", "the run"),
    }
    columns = [estimate_lines(line, capsys) for line in SECTIONS["Hours, memory and cost"]]
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    for shown, key in names.items():
        assert f"| {' | '.join([shown, *(lines[key] for lines in columns)])} |\n" in page


def estimate_lines(line: str, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], str]:
    """Return the value and the range of each line that a command of the page prints."""
    call = read_call(f"{line} --json")
    assert call and COMMANDS[call.name](call.argv) == 0
    found = json.loads(capsys.readouterr().out)["lines"]
    return {
        (one["section"], one["name"]): f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})"
        for one in found
        if one["low"] is not None
    }


def test_jobs_of_an_array_record_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [line for line in LINES if line.startswith("sbatch --array")]
    found = []
    monkeypatch.setattr("tests.test_imagenet_page.run", lambda command, _: found.append(command))
    run_line(jobs[0], monkeypatch)
    calls = [read_call(command.line) for command in found]
    parts = [call.argv[call.argv.index("--part") + 1] for call in calls if call]
    assert parts == ["1/3", "2/3", "3/3"]


@pytest.mark.slow
def test_every_command_after_the_images_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_named(tmp_path)
    (tmp_path / "IMAGENET").unlink()
    write_archives(tmp_path)
    names = list(SECTIONS)
    run_sections(["Archives of image-net.org"], tmp_path, monkeypatch)
    with working_in(tmp_path):
        for part in (1, 2, 3):
            run_line(PREPARED.format(part), monkeypatch)
    run_sections(names[names.index("Look at it") :], tmp_path, monkeypatch)
    for made in ("runs/deit/report.html", "deit-small/model.safetensors", "PACKED/pack.json"):
        assert (tmp_path / made).is_file(), made
