"""Fixtures of the tests of data."""

import os

import pytest

from fastdeit.data.formats import check
from fastdeit.data.formats.check import ByteRange, Checked, check_place


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from here on."""
    names: list[str] = []

    def spy(place: ByteRange) -> Checked:
        names.append(os.path.basename(place[0]))
        return check_place(place)

    monkeypatch.setattr(check, "check_place", spy)
    return names
