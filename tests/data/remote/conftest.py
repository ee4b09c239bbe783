"""Fixtures of the tests of far data: a web server, small blocks, short waits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdeit.data.remote import retries, transfer
from tests.support.far_server import FarServer

BLOCK = 1 << 12


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WAITS_S", (0.001,) * 6)
    monkeypatch.setattr(transfer, "BLOCK", BLOCK)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarServer]:
    folder = tmp_path / "far"
    folder.mkdir()
    with FarServer(folder).running() as server:
        yield server
