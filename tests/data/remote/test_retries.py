"""Attempts after faults that may pass."""

import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx2
import pytest

from fastdeit.data.remote import retries
from fastdeit.data.remote.retries import next_wait, retry
from fastdeit.data.remote.source import FetchError, FetchStopped, Transient, Unreachable
from fastdeit.data.remote.sources.web import _read_wait


def test_waits_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the waits of the product
    waits = [next_wait(Transient("503"), failures, "x") for failures in range(1, 7)]
    assert waits == [1, 2, 4, 8, 16, 32]
    with pytest.raises(Unreachable, match="^x: 503; tried 7 times$"):
        next_wait(Transient("503"), 7, "x")


def test_the_source_may_ask_for_another_wait() -> None:
    assert next_wait(Transient("503", 40.0), 1, "x") == 40.0
    assert next_wait(Transient("503", 0.0), 1, "x") == 0.0


def wait_of(text: str) -> float | None:
    return _read_wait(httpx2.Response(503, headers={"Retry-After": text} if text else {}))


def test_retry_after_is_a_number_or_a_date() -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    found = wait_of(soon)
    assert found is not None and 50 < found <= 60
    assert (wait_of("7"), wait_of("86400"), wait_of("Wed, 21 Oct 2015 07:28:00 GMT")) == (7, 300, 0)
    assert [wait_of(text) for text in ("", "soon", "-1", "1e9", "inf")] == [None] * 5


def test_what_passes_is_tried_again_and_what_stays_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(retries, "WAITS_S", (1.0, 2.0))
    faults = [Transient("a"), Transient("b", 9.0)]

    def act() -> str:
        if faults:
            raise faults.pop(0)
        return "done"

    assert retry(act) == "done" and sum(slept) == 1.0 + 9.0

    def refuse() -> None:
        slept.append(-1)
        raise FetchError("403")

    with pytest.raises(FetchError, match="403"):
        retry(refuse)
    assert slept.count(-1) == 1


def test_a_request_to_stop_ends_the_wait_for_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def fail() -> None:
        raise Transient("500", 30.0)

    with pytest.raises(FetchStopped, match="s3://bucket: stopped"):
        retry(fail, "s3://bucket", lambda: sum(slept) < 3)
    assert sum(slept) == 3
    with pytest.raises(FetchStopped):
        retry(slept.clear, "s3://bucket", lambda: False)
    assert slept, "no attempt is made after it"
