"""The lease of a URL: one live run, and a dead one is replaced."""

import threading
import time
from pathlib import Path

import pytest

from fastdeit.data.remote.source import FetchStopped
from fastdeit.mirror.lease import NAME, Lease
from fastdeit.mirror.store import RunStore
from tests.support.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(f"file://{tmp_path}/bucket/run")


def never(_: str = "") -> None:
    raise AssertionError


def test_a_free_url_is_taken_at_once_and_released(store: RunStore) -> None:
    lease = Lease(store, never)
    lease.acquire(never)
    assert lease.is_held()
    lease.release()
    assert store.read(NAME) is None


def test_a_live_holder_is_named(store: RunStore) -> None:
    held = Lease(store, never)
    held.acquire(never)
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"--output-dir: file://.* is in use by process \d+ on "):
        Lease(store, never).acquire(lines.append)
    assert "waiting" in lines[0] and held.is_held()
    held.release()


def test_a_dead_holder_is_replaced_after_a_wait(store: RunStore) -> None:
    store.write(NAME, b'{"host": "gone", "pid": 1}')
    lines: list[str] = []
    lease = Lease(store, never)
    lease.acquire(lines.append)
    assert "process 1 on 'gone'" in lines[0] and lease.is_held()
    lease.release()


def test_of_two_that_replace_a_dead_holder_the_later_one_stays(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(NAME, b'{"host": "gone", "pid": 1}')
    write = store.write

    def write_before_another(name: str, data: bytes) -> None:
        write(name, data)
        write(name, b'{"host": "other", "pid": 2}')

    monkeypatch.setattr(store, "write", write_before_another)
    with pytest.raises(ValueError, match="is in use by"):
        Lease(store, never).acquire(lambda _: None)


def test_a_holder_that_ends_in_the_wait_makes_room(store: RunStore) -> None:
    store.write(NAME, b"{}")
    threading.Timer(0.15, lambda: store.remove([NAME])).start()
    lease = Lease(store, never)
    lease.acquire(lambda _: None)
    lease.release()


def test_a_wait_ends_when_the_run_is_asked_to_stop(store: RunStore) -> None:
    store.write(NAME, b"{}")
    answers = iter([True, True])  # for the first write and the first read; then it waits
    asked = RunStore(store.url, lambda: next(answers, False))
    lease = Lease(asked, never)
    with pytest.raises(FetchStopped):
        lease.acquire(lambda _: None)
    lease.release()
    assert store.read(NAME) == b"{}"


def test_a_lease_that_another_run_has_taken_is_reported_and_left_alone(store: RunStore) -> None:
    lost = threading.Event()
    lease = Lease(store, lost.set)
    lease.acquire(never)
    store.write(NAME, b'{"id": "other"}')
    assert lost.wait(10)
    lease.release()
    assert store.read(NAME) == b'{"id": "other"}'


def test_it_is_renewed_while_it_is_held(store: RunStore) -> None:
    lease = Lease(store, never)
    lease.acquire(never)
    first = store.read(NAME)
    wait_until(lambda: store.read(NAME) not in (None, first))
    lease.release()


def test_a_renewal_in_progress_is_no_loss(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(store, never)
    lease.acquire(never)
    write = RunStore.write

    def write_slowly(self: RunStore, name: str, data: bytes) -> None:
        write(self, name, b"")  # as a file that was just opened
        time.sleep(0.02)
        write(self, name, data)

    monkeypatch.setattr(RunStore, "write", write_slowly)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert lease.is_held()
    lease.release()


def test_the_end_does_not_wait_for_a_store_that_hangs(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(store, lambda: None)
    lease.acquire(never)
    hanging = threading.Event()
    freed = threading.Event()

    def hang(self: RunStore, name: str) -> bytes:
        hanging.set()
        freed.wait(30)
        return b""

    monkeypatch.setattr("fastdeit.mirror.lease._RELEASE_S", 0.1)
    monkeypatch.setattr(RunStore, "read", hang)
    assert hanging.wait(10)
    start = time.monotonic()
    lease.release()
    assert time.monotonic() - start < 5
    freed.set()
