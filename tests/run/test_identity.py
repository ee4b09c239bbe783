"""Identity of a run: versions, the hash of the code, and differences between ranks."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from nvidia import dali

import fastdeit
from fastdeit.config.schema import Config
from fastdeit.distributed import collectives
from fastdeit.distributed.collectives import check_same_on_ranks
from fastdeit.distributed.world import init_distributed
from fastdeit.run import identity
from fastdeit.run.identity import check_same_everywhere, code_digest, versions


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
    monkeypatch.setattr(identity, "_dali_version", lambda: "2.5.0")
    theirs = versions()
    monkeypatch.setattr(collectives, "on_every_rank", lambda action: [("a", ours), ("b", theirs)])
    message = f"rank 1 \\(b\\) differs from rank 0 in dali: '{ours['dali']}', there '2.5.0'"
    with pytest.raises(ValueError, match=message):
        check_same_on_ranks(ours)


def test_ranks_with_different_settings_or_code_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    init_distributed()
    config = Config()
    ours = identity._describe_process(config)
    check_same_everywhere(config)
    theirs = ours | {"--lr": 0.1, "code": "0123"}
    ranks = [("a", ours), ("a", ours), ("b", theirs)]
    monkeypatch.setattr(collectives, "on_every_rank", lambda action: ranks)
    message = r"rank 2 \(b\) differs from rank 0 in --lr: 0.0005, there 0.1; code: "
    with pytest.raises(ValueError, match=message):
        check_same_everywhere(config)


def test_code_digest_changes_with_every_python_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels").mkdir()
    for name in ("identity.py", "kernels/a.py"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(fastdeit, "__file__", str(tmp_path / "__init__.py"))
    digests = set()
    for name, text in (("kernels/a.py", "x"), ("kernels/a.py", "y"), ("b.py", "x"), ("b.txt", "x")):
        (tmp_path / name).write_text(text)
        code_digest.cache_clear()
        digests.add(code_digest())
    code_digest.cache_clear()
    assert len(digests) == 3  # b.txt does not count
