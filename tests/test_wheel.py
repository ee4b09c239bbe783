"""The wheel: what it holds and names, that it works away from the checkout; the long form installs
it into an empty environment and trains, records and resumes there."""

import contextlib
import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fastdeit
from tests.support.launching import ROOT, clean_environment, free_port

SOURCES = ("fastdeit", "kernels", "tests")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
EXTRAS = {"onnx", "remote", "report", "wandb", "all", "bench", "docs", "dev"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_%s(sys.argv[1])"


def _build(kind: str, tree: Path, output: Path) -> Path:
    """Build a `wheel` or `sdist` of a tree with the setuptools that torch brings; return its
    path."""
    output.mkdir(parents=True)
    command = [sys.executable, "-c", BUILD % kind, str(output)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = output.iterdir()
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return the wheel of the tree, the sdist, and the wheel of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in SOURCES:
        without = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=without)
    for name in (*FILES, "constraints.txt"):
        shutil.copy(ROOT / name, tree / name)
    sdist = _build("sdist", tree, folder / "sdist")
    shutil.unpack_archive(sdist, folder)
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return {
        "sdist": sdist,
        "tree": _build("wheel", tree, folder / "of tree"),
        "unpacked": _build("wheel", unpacked, folder / "of sdist"),
    }


def _read(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_wheel_of_the_sdist_equals_that_of_the_tree(built: Mapping[str, Path]) -> None:
    assert _read(built["tree"]) == _read(built["unpacked"])


def test_wheel_holds_every_file_of_the_package_and_the_kernels_alone(
    built: Mapping[str, Path],
) -> None:
    held = {name for name in _read(built["tree"]) if ".dist-info/" not in name}
    files = [path for path in (ROOT / "fastdeit").rglob("*") if path.is_file()]
    kernels = (ROOT / "kernels").rglob("*.*")
    files += [ROOT / "fastdeit" / path.relative_to(ROOT) for path in kernels if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert held == {name for name in names if "__pycache__" not in name}


def test_sdist_has_the_constraints_and_no_tests(built: Mapping[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"constraints.txt", "CHANGELOG.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_metadata_names_version_command_and_extras(built: Mapping[str, Path]) -> None:
    held = _read(built["tree"])
    info = f"fastdeit-{fastdeit.__version__}.dist-info"
    metadata = email.message_from_bytes(held[f"{info}/METADATA"])
    assert metadata["Version"] == fastdeit.__version__
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert b"fastdeit = fastdeit.__main__:main" in held[f"{info}/entry_points.txt"]


def test_constraints_lie_in_the_ranges_of_setup(built: Mapping[str, Path]) -> None:
    (info,) = [name for name in _read(built["tree"]) if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(_read(built["tree"])[info])
    ranges = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    versions = {pin.name.lower(): _version(pin) for pin in _read_pins()}
    wide = [each for each in ranges if each.name.lower() in versions]
    assert {each.name for each in wide} >= {"torch", "timm", "deepspeed", "nvidia-dali-cuda120"}
    assert not [each for each in wide if versions[each.name.lower()] not in each.specifier]


@pytest.mark.parametrize("python", ["3.10.0", "3.11.2", "3.11.7", "3.12.0", "3.13.0"])
def test_each_python_takes_the_versions_that_constraints_name_for_it(python: str) -> None:
    """Of the packages that are installed here; a version for newer Pythons needs a marker."""
    place = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    named = [pin for pin in _read_pins() if pin.marker is None or pin.marker.evaluate(place)]
    refused, seen = [], 0
    for pin in named:
        with contextlib.suppress(PackageNotFoundError):
            found = distribution(pin.name)
            if found.version == _version(pin):
                seen += 1
                (rule,) = found.metadata.get_all("Requires-Python") or [""]
                allowed = SpecifierSet(rule)
                refused += [] if python in allowed else [f"{pin.name}: {allowed}"]
    if not seen:
        pytest.skip("other versions are installed than those of constraints.txt")
    assert not refused


def _read_pins() -> list[Requirement]:
    """Return the lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _version(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


def test_named_extras_exist() -> None:
    files = [*(ROOT / "fastdeit").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    named = {extra for text in texts for extra in re.findall(r"fastdeit\[(\w+)\]", text)}
    assert {"onnx", "remote", "report", "wandb"} <= named <= EXTRAS


def test_wheel_works_away_from_the_checkout(built: Mapping[str, Path], tmp_path: Path) -> None:
    """Its modules, kernels and data files come from the wheel, without a commit in the version."""
    target = tmp_path / "target"
    with zipfile.ZipFile(built["tree"]) as archive:
        archive.extractall(target)
    code = (
        "import sys, importlib.util, fastdeit.__main__ as entry\n"
        "for argv in (['--version'], ['recipes', 'list'], ['train', '--recipe', 'x']):\n"
        "    sys.argv = ['fastdeit', *argv]\n"
        "    try: entry.main()\n"
        "    except SystemExit: pass\n"
        "print(importlib.util.find_spec('fastdeit.kernels.mix').origin)\n"
    )
    environment = clean_environment() | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    version, *listed, kernel = done.stdout.splitlines()
    assert version.startswith(f"fastdeit {fastdeit.__version__}, python ")
    assert any("digits_teacher" in line for line in listed)
    assert kernel == str(target / "fastdeit" / "kernels" / "mix.py")
    assert "--recipe must be" in done.stderr


@pytest.mark.slow
def test_wheel_in_an_empty_environment_trains_records_and_resumes(
    built: Mapping[str, Path], tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    wheel = tmp_path / built["tree"].name
    shutil.copy(built["tree"], wheel)
    uv = [sys.executable, "-m", "uv"]
    python = environment / "bin" / "python"
    _run([*uv, "venv", "--python", sys.executable, str(environment)], tmp_path)
    install = [*uv, "pip", "install", "--constraint", str(ROOT / "constraints.txt")]
    _run([*install, "--python", str(python), str(wheel)], tmp_path)
    _run([*uv, "pip", "check", "--python", str(python)], tmp_path)

    def fastdeit_in(*words: str) -> str:
        return _run([str(python), "-P", "-m", "fastdeit", *words], tmp_path)

    def launch(*words: str) -> str:
        launcher = [str(python), "-P", "-m", "deepspeed.launcher.runner", "-q"]
        port = ["--num_accelerators", "2", "--master_port", str(free_port())]
        return _run([*launcher, *port, "--module", "fastdeit", *words], tmp_path)

    short = ("--epochs", "1", "--warmup-epochs", "0")
    done = launch("train", "--recipe", "digits_teacher", *short)
    assert "next: deepspeed --module fastdeit train --recipe digits" in done
    stopped = launch("train", "--recipe", "digits", *short, "--stop-after-steps", "5")
    assert "stopped after step 5 " in stopped
    assert "resumed from" in launch("train", "--recipe", "digits", *short)
    assert json.loads(fastdeit_in("evaluate", "runs/digits", "--json"))["images"] == 355
    record = ("cache", "build", "--recipe", "digits", "--epochs", "0-0", "-o", "CACHE")
    assert "23 of 23 chunks" in launch(*record)
    assert "0 damaged" in fastdeit_in("cache", "verify", "CACHE")
    # its measured rates are a file of the package
    assert "CPU process" in fastdeit_in("estimate", "--recipe", "digits", "--gpu", "cpu")


def _run(command: list[str], folder: Path) -> str:
    """Run a command away from the checkout; return what it prints."""
    environment = clean_environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
