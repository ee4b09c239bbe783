"""Versions: of the packages, of the checkout, and those that differ between ranks."""

import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from nvidia import dali

import fastdeit
from fastdeit.distributed import collectives
from fastdeit.distributed import versions as own
from fastdeit.distributed.collectives import check_same_on_ranks
from fastdeit.distributed.versions import find_commit, versions


@pytest.fixture(autouse=True)
def no_cached_versions() -> Iterator[None]:
    versions.cache_clear()
    yield
    versions.cache_clear()


@pytest.mark.parametrize("packages", [1, 2])
def test_version_of_dali_is_that_of_the_module(
    packages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package has another name for each CUDA version, and there may be several."""
    if packages == 2:
        old = Path("nvidia_dali_cuda120-1.0.0.dist-info")
        monkeypatch.setattr(Path, "glob", lambda folder, pattern: [old, old])

    def find_nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", find_nothing)
    found = versions()
    assert found["dali"] == dali.__version__
    assert found["torch"] == "not installed"


def test_no_version_is_empty() -> None:
    assert all(versions().values())


def test_ranks_with_different_dali_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = versions()
    versions.cache_clear()
    monkeypatch.setattr(own, "_dali_version", lambda: "2.5.0")
    theirs = versions()
    monkeypatch.setattr(collectives, "on_every_rank", lambda action: [("a", ours), ("b", theirs)])
    message = f"rank 1 \\(b\\) differs from rank 0 in dali: '{ours['dali']}', there '2.5.0'"
    with pytest.raises(ValueError, match=message):
        check_same_on_ranks(ours)


def test_commit_is_that_of_the_checkout_the_package_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True)

    installed = tmp_path / "site-packages" / "fastdeit" / "__init__.py"
    checked_out = tmp_path / "fastdeit" / "__init__.py"
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    monkeypatch.setattr(fastdeit, "__file__", str(installed))
    assert find_commit() == ""
    monkeypatch.setattr(fastdeit, "__file__", str(checked_out))
    commit = find_commit()
    assert len(commit) >= 7 and int(commit, 16) >= 0
    (tmp_path / "new").touch()
    assert find_commit() == f"{commit}+dirty"
    monkeypatch.setenv("PATH", "")
    assert find_commit() == ""
