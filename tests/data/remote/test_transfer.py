"""Faults of a server while a file arrives."""

import time
from pathlib import Path

import pytest

from fastdeit.data.remote.source import FetchError, Unreachable
from fastdeit.data.remote.sources import web
from tests.data.remote.conftest import BLOCK
from tests.support.far_server import (
    FarServer,
    Fault,
    cut,
    lie,
    no_ranges,
    redirect,
    replace,
    send_another,
    stall,
    status,
)
from tests.support.fetching import (
    fetch_quietly,
    list_parts,
    make_bytes,
    read_folder,
    write_files,
    write_sums,
)

SIZE = 5 * BLOCK + 100

PASSING = {
    "500": status(500),
    "502": status(502),
    "503 for a moment": status(503, Retry_After="0"),
    "429 until a past date": status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "a wait that is no time": status(503, Retry_After="soon"),
    "cut at once": cut(0),
    "cut in the middle": cut(1000),
    "a length that is too long": lie,
}


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("size", [900, SIZE])
def test_a_fault_that_passes_changes_nothing(
    name: str, size: int, far: FarServer, tmp_path: Path
) -> None:
    contents = write_files(far.folder, a=size)
    far.fail("a.tar", PASSING[name], times=3)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == contents
    assert list_parts(tmp_path / "out") == []


def test_a_cut_block_is_continued_where_it_broke(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=BLOCK)
    far.fail("a.tar", cut(1000), times=2)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    ranges = [each.range for each in far.asked if each.range != "bytes=0-0"]
    assert ranges == ["", f"bytes=1000-{BLOCK - 1}", f"bytes=2000-{BLOCK - 1}"]
    assert read_folder(tmp_path / "out") == contents


def test_bytes_that_arrive_begin_the_count_of_attempts_again(
    far: FarServer, tmp_path: Path
) -> None:
    contents = write_files(far.folder, a=BLOCK)
    far.fail("a.tar", cut(100), times=20)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == contents


def test_a_server_that_stalls_is_asked_again(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "READ_S", 0.2)
    contents = write_files(far.folder, a=SIZE)
    far.fail("a.tar", stall(20))
    started = time.monotonic()
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert time.monotonic() - started < 10
    assert read_folder(tmp_path / "out") == contents


ENDLESS = {"no bytes": cut(0), "503": status(503), "whole, and always cut": cut(50)}


@pytest.mark.parametrize("name", ["no bytes", "503"])
def test_a_server_that_always_fails_ends_the_fetch(
    name: str, far: FarServer, tmp_path: Path
) -> None:
    write_files(far.folder, a=SIZE, b=10)
    far.fail("a.tar", ENDLESS[name], times=100)
    with pytest.raises(Unreachable, match=r"a\.tar: .*; tried 7 times"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert far.count("a.tar") == 7 and read_folder(tmp_path / "out") == {}


def cut_whole(sends: int) -> Fault:
    """Send the first bytes of the whole file, whatever was asked for."""

    def fault(request: object) -> bool:
        request.answer(sends=sends, ranges=False)  # type: ignore[attr-defined]
        return True

    return fault


def test_a_whole_answer_that_is_always_cut_ends_the_fetch(far: FarServer, tmp_path: Path) -> None:
    """The bytes that come again and again are no progress."""
    write_files(far.folder, a=SIZE)
    far.fail("a.tar", cut_whole(BLOCK), times=100)
    with pytest.raises(Unreachable, match="tried"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert far.count("a.tar") < 12


@pytest.mark.parametrize("code", [401, 403, 404, 410, 418])
def test_a_fault_that_stays_is_not_tried_again(code: int, far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    far.fail("a.tar", status(code), times=100)
    with pytest.raises(FetchError, match=str(code)) as caught:
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert far.count("a.tar") == 1
    assert ("credentials" in str(caught.value)) == (code in (401, 403))


def test_a_server_without_ranges_sends_the_file_once(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=SIZE)
    far.fail("a.tar", no_ranges, times=100)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert read_folder(tmp_path / "out") == contents
    assert far.count("a.tar") == 2  # the first was asked for a block


def test_a_file_that_changes_in_between_is_fetched_anew(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    after = make_bytes(SIZE - 50, seed=9)
    far.fail("a.tar", lambda _: False, times=3)  # three blocks of the first version
    far.fail("a.tar", replace(after))
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert read_folder(tmp_path / "out") == {"a.tar": after}


def test_a_file_that_shrinks_to_nothing_is_empty(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    far.fail("a.tar", replace(b""))
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": b""}


def test_a_file_that_never_stays_the_same_ends_the_fetch(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    for seed in range(50):
        far.fail("a.tar", replace(make_bytes(SIZE, seed)))
    with pytest.raises(FetchError, match="changes it again and again"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)


def test_a_redirect_is_followed(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=SIZE)
    far.fail("moved.tar", redirect("/a.tar"), times=100)
    (far.folder / "moved.tar").write_bytes(contents["a.tar"])
    fetch_quietly(f"{far.address}/moved.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"moved.tar": contents["a.tar"]}
    assert far.count("a.tar") == 6


def test_a_block_of_another_version_is_not_used(far: FarServer, tmp_path: Path) -> None:
    """The file is another one for a moment only, so that the end shows no change."""
    contents = write_files(far.folder, a=SIZE)
    far.fail("a.tar", lambda _: False, times=2)
    far.fail("a.tar", send_another)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    assert read_folder(tmp_path / "out") == contents
    assert far.count("a.tar") == 7  # the two blocks before it stay


@pytest.mark.parametrize("size", [900, SIZE])
def test_spoilt_bytes_are_found_by_the_checksum(size: int, far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=size)
    write_sums(far.folder, "a.tar")
    far.fail("a.tar", send_another)
    fetch_quietly(far.address, tmp_path / "out", workers=1)
    found = read_folder(tmp_path / "out")
    assert found.pop("SHA256SUMS") and found == contents


def test_a_wrong_checksum_is_an_error(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    write_sums(far.folder, "a.tar")
    write_files(far.folder, a=SIZE - 1)
    with pytest.raises(FetchError, match=r"a\.tar: must be sha256:\w+ \(got sha256:\w+\)"):
        fetch_quietly(far.address, tmp_path / "out")
    assert "a.tar" not in read_folder(tmp_path / "out")


def test_an_empty_file_is_fetched(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, empty=0)
    fetch_quietly(f"{far.address}/empty.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"empty.tar": b""}


def test_a_file_of_whole_blocks_is_fetched(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, one=BLOCK, two=2 * BLOCK, more=2 * BLOCK + 1)
    fetch_quietly(f"{far.address}/{{one,two,more}}.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == contents
