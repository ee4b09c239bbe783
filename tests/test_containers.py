"""The container files: what they copy exists, and both install the same things from the same
constraints."""

import re
from pathlib import Path

import pytest

from tests.support.launching import ROOT
from tests.test_wheel import EXTRAS, FILES

DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "fastdeit.def").read_text()
STEPS = r"^(?:apt-get|python3 -m venv|pip|uv pip|rm) .*"


def _section(name: str) -> list[str]:
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", APPTAINER, re.DOTALL | re.MULTILINE)
    assert found
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def _instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def _steps(lines: list[str]) -> list[str]:
    """Return the steps of an installation, one command each, as both files could have them."""
    commands = [" ".join(part.split()) for line in lines for part in line.split("&&")]
    return [command for command in commands if re.match(STEPS, command)]


def test_both_run_the_same_steps() -> None:
    ours = _steps(_instructions("RUN"))
    assert ours.pop() == "uv pip install --no-cache --no-deps --reinstall ."
    theirs = [line.replace("[all]", "[${EXTRAS}]") for line in _steps(_section("post"))]
    assert len(ours) == 6 and ours == theirs
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert f"From: {base}\n" in APPTAINER
    (extra,) = re.findall(r"^ARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    assert extra in EXTRAS


def test_python_is_one_that_the_constraints_are_for() -> None:
    (version,) = re.findall(r"^From: python:3\.(\d+)-", APPTAINER, re.MULTILINE)
    assert 11 <= int(version) <= 13


def _copied() -> set[str]:
    """Return what either file copies, relative to the root."""
    named = {word for line in _instructions("COPY") for word in line.split()[:-1]}
    return (named - {"."}) | {line.split()[0] for line in _section("files")}


def _admitted() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


@pytest.mark.parametrize("name", sorted(_copied() | _admitted()))
def test_copied_path_exists_and_is_in_the_context(name: str) -> None:
    assert (ROOT / name).exists()
    assert Path(name).parts[0] in _admitted()


def test_both_copy_all_that_a_wheel_is_made_of() -> None:
    needed = {*FILES, "constraints.txt", "fastdeit", "kernels"}
    assert needed == _admitted() == {line.split()[0] for line in _section("files")}


def test_image_runs_as_a_user_and_starts_fastdeit() -> None:
    assert _instructions("USER") == ["1000"]
    assert _instructions("ENTRYPOINT") == ['["fastdeit"]']
    assert _section("runscript") == ['exec fastdeit "$@"']
