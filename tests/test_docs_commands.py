"""Every command in the `sh` blocks of README and docs/ is accepted by its parser, and runs on small
data, except those that are listed with the reason."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.launching import ROOT
from tests.support.page_commands import (
    PAGES,
    Call,
    Command,
    find_commands,
    find_spans,
    parse,
    read_call,
    run,
)
from tests.support.page_data import write_named
from tests.support.pages import working_in

COMMANDS = find_commands()
# pages whose commands another file runs
RUN_ELSEWHERE = {
    "docs/first-model.md": "tests/test_first_model.py",
    "docs/imagenet.md": "tests/test_imagenet_page.py",
}
# pages whose Python another file runs
PYTHON_ELSEWHERE = {
    "docs/data.md": "tests/data/formats/test_detect.py",
    "docs/export.md": "tests/export/test_guide.py",
    "docs/first-model.md": "tests/test_first_model.py",
    "docs/library.md": "tests/test_library_docs.py",
}
# what is parsed, but not run: a pattern, and why
NOT_RUN = {
    r"^\. ": "activates an environment of a shell",
    r"^make ": "sets up the environment, or runs these tests",
    r"^(pip|CC=\S+ -\S+ pip|CC=)": "installs packages",
    r"^(docker|apptainer) ": "needs the program of the container",
    r"^mkdir -p ~": "writes to the home folder",
    r"^tensorboard ": "serves pages until it is stopped",
    r"--log-wandb|--prometheus|--callback": "needs an account, node_exporter or a module of the"
    " user; tests/tracking/ has them",
    r"benchmarks[./]": "measures for minutes; tests/benchmarks/ has the short form",
    r"s3://|hf://|'https://host": "needs a store at a URL; tests/data/remote/ has servers",
    r"--hostfile|^sbatch": "needs several machines; tests/distributed/test_machines.py",
    r"--finetune deit_tiny": "needs published weights; docs/finetuning.md has runs with our own",
    r"deit_base\.pth|deit_small_distilled_patch16_224 --|--checkpoint deit_small": "needs published"
    " weights; tests/inference/test_load.py has their form",
    r"imagenetv2|imagenet-a|imagenet-r|--real-labels": "needs 1,000 classes of published images;"
    " tests/inference/test_class_maps.py has them in small",
}
# what a page needs beside the folder below
PREPARED = {
    "README.md": ["fastdeit train --recipe digits_teacher"],
    "cache.md": [f"fastdeit cache build ... --epochs 300 -o CACHE-{part}" for part in (1, 2)],
}


def reason(command: Command) -> str:
    """Return why a command is not run, or an empty string."""
    found = (why for pattern, why in NOT_RUN.items() if re.search(pattern, command.line))
    return RUN_ELSEWHERE.get(command.page) or next(found, "")


def of_page(page: Path) -> list[Command]:
    name = page.relative_to(ROOT).as_posix()
    return [command for command in COMMANDS if command.page == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the commands name: data sets, photographs, runs, weights."""
    folder = tmp_path_factory.mktemp("named")
    write_named(folder)
    return folder


PAGES_WITH_COMMANDS = [page for page in PAGES if of_page(page)]
each_page = pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.stem)


@each_page
def test_each_command_is_accepted_by_its_parser(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for command in of_page(page):
        call = read_call(command.line)
        assert call or reason(command) or "\n" in command.line, f"{command.line}: no known program"
        if call:
            with monkeypatch.context() as patch:
                parse(call, patch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_text_are_accepted_too(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for span in find_spans(page):
        call = read_call(span)
        assert call, span
        with monkeypatch.context() as patch:
            parse(call, patch)


def test_each_reason_has_a_command() -> None:
    assert not [
        pattern
        for pattern in NOT_RUN
        if not any(re.search(pattern, command.line) for command in COMMANDS)
    ]


@pytest.mark.parametrize(
    "line", ["train --epochs many", "pack", "index", "cache verify", "train --no-such-flag"]
)
def test_a_wrong_command_is_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *argv = line.split()
    with pytest.raises((SystemExit, pytest.fail.Exception)):
        parse(Call(name, argv), monkeypatch)


@pytest.mark.parametrize(
    "target", sorted({c.line.split()[1] for c in COMMANDS if c.line[:5] == "make "})
)
def test_targets_of_make_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def run_all(commands: list[Command], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_in(folder):
        for command in commands:
            with monkeypatch.context() as patch:
                run(command, patch)


@pytest.mark.slow
@each_page
def test_all_commands_of_a_page_run(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "page"
    shutil.copytree(folder, place, symlinks=True)
    commands = [command for command in of_page(page) if not reason(command)]
    before = [Command(page.name, line) for line in PREPARED.get(page.name, [])]
    run_all(before + commands, place, monkeypatch)


def python_of(page: Path) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(blocks)


def pages_with_python() -> list[Path]:
    return [page for page in PAGES if python_of(page)]


@pytest.mark.parametrize("page", pages_with_python(), ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = PYTHON_ELSEWHERE.get(page.relative_to(ROOT).as_posix())
    if elsewhere:
        assert page.name in (ROOT / elsewhere).read_text()
        return
    monkeypatch.chdir(folder)
    if "import pandas" in python_of(page):
        pytest.importorskip("pandas")
    exec(python_of(page).replace("batch_size=256", "batch_size=8"), {"__name__": "page"})
