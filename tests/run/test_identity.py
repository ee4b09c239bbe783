"""Which versions a run is told apart by."""

from collections.abc import Iterator
from importlib import metadata

import pytest
from nvidia import dali

from fastdeit.run import identity


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    identity.versions.cache_clear()
    yield
    identity.versions.cache_clear()


def test_dali_is_asked_itself_whatever_its_package_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing_installed)
    found = identity.versions()
    assert found["dali"] == dali.__version__
    assert found["torch"] == "not installed"


def test_no_version_is_empty() -> None:
    assert all(identity.versions().values())


def test_ranks_with_other_dalis_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = identity.versions()
    identity.versions.cache_clear()
    monkeypatch.setattr(dali, "__version__", "2.5.0")
    theirs = identity.versions()
    monkeypatch.setattr(identity, "on_every_rank", lambda action: [("a", ours), ("b", theirs)])
    with pytest.raises(
        ValueError,
        match=f"rank 1 \\(b\\) differs from rank 0 in dali: '{ours['dali']}', there '2.5.0'",
    ):
        identity._compare_ranks(ours)
