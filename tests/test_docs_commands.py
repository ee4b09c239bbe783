"""Every command in the `sh` blocks of README and docs/ is accepted by its parser, and runs on small
data, except those that are listed with the reason."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

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
from tests.support.pages import run_commands, working_in

COMMANDS = find_commands()
# pages whose commands another file runs
RUN_ELSEWHERE = {"docs/first-model.md": "tests/test_first_model.py"}
# pages whose Python another file runs
PYTHON_ELSEWHERE = {
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
    r"deit_base\.pth|deit_small_distilled_patch16_224 --|--checkpoint deit_small": "needs published"
    " weights; tests/inference/test_load.py has their form",
    r"imagenetv2|imagenet-a|imagenet-r|--real-labels": "needs 1,000 classes of published images;"
    " tests/inference/test_class_maps.py has them in small",
}
# commands that are run by default; the others with -m slow
QUICK = ("index", "preview", "predict", "evaluate", "pack", "audit", "recipes", "estimate")
# what a page needs beside the folder below
PREPARED = {
    "README.md": ["fastdeit train --recipe digits_teacher"],
    "cache.md": [f"fastdeit cache build ... --epochs 300 -o CACHE-{part}" for part in (1, 2)],
    "imagenet.md": ["rm IMAGENET"],
}
CLASSES = ("n01440764", "n01443537")


def reason(command: Command) -> str:
    """Return why a command is not run, or an empty string."""
    found = (why for pattern, why in NOT_RUN.items() if re.search(pattern, command.line))
    return RUN_ELSEWHERE.get(command.page) or next(found, "")


def of_page(page: Path) -> list[Command]:
    name = page.relative_to(ROOT).as_posix()
    return [command for command in COMMANDS if command.page == name]


def write_images(folder: Path, count: int, names: str = "{}.JPEG", size: int = 40) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(len(str(folder)))
    for number in range(1, count + 1):
        pixels = draws.integers(0, 256, (size, size + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names.format(number))


def write_archives(folder: Path) -> None:
    """Write ImageNet's three archives in small: two classes, twelve and six images of each."""
    source = folder / "source"
    for name in CLASSES:
        write_images(source / "train" / name, 12)
    write_images(source / "val", 12, "ILSVRC2012_val_{:08}.JPEG")
    data = source / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    truth = "".join(f"{2 - number % 2}\n" for number in range(1, 13))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = np.array([(n + 1, name, name, 0) for n, name in enumerate(CLASSES)], dtype=kinds)
    savemat(data / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for name in CLASSES:
            with tarfile.open(source / f"{name}.tar", "w") as part:
                for image in sorted((source / "train" / name).iterdir()):
                    part.add(image, image.name)
            archive.add(source / f"{name}.tar", f"{name}.tar")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for image in sorted((source / "val").iterdir()):
            archive.add(image, image.name)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(source / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the commands name: data sets, photographs, runs, weights."""
    folder = tmp_path_factory.mktemp("named")
    for name in CLASSES:
        write_images(folder / "DATA" / "train" / name, 12)
        write_images(folder / "DATA" / "val" / name, 6)
    (folder / "IMAGENET").symlink_to("DATA")
    write_images(folder / "photos", 2, "{}.jpg")
    write_images(folder / "more" / "below", 1, "{}.png")
    write_images(folder / "photo", 1, "photo.jpg")
    (folder / "photo" / "photo.jpg").rename(folder / "photo.jpg")
    common = "--data-path DATA --input-size 32 --batch-size 8 --epochs 1 --warmup-epochs 0"
    with working_in(folder):
        run_commands(
            f"fastdeit train --model test_resnet --distillation-type none {common} "
            "--output-dir runs/teacher\n"
            "fastdeit train --embed-dim 24 --depth 2 --num-heads 3 --patch-size 8 "
            f"--teacher-model test_resnet --teacher-path runs/teacher {common} "
            "--output-dir runs/NAME\n"
        )
    for run_name in ("digits", "digits_alone", "deit", "deit3"):
        (folder / "runs" / run_name).symlink_to("NAME")
    (folder / "runs" / "digits_teacher").symlink_to("teacher")
    (folder / "RUN").symlink_to("runs/NAME")
    (folder / "regnety_160.safetensors").symlink_to("runs/teacher/model.safetensors")
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


def test_quick_commands_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [(command, read_call(command.line)) for command in COMMANDS if not reason(command)]
    quick = [command for command, call in calls if call and call.name in QUICK]
    assert len(quick) > 8
    place = tmp_path / "quick"
    shutil.copytree(folder, place, symlinks=True)
    run_all(quick, place, monkeypatch)


@pytest.mark.slow
@each_page
def test_all_commands_of_a_page_run(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "page"
    shutil.copytree(folder, place, symlinks=True)
    write_archives(place)
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
