"""JSON-lines files: torn lines, typed records, and a disk that is full."""

import fcntl
import json
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_core
import pytest

from fastdeit.data.quarantine import QuarantinedImage
from fastdeit.storage import jsonl
from fastdeit.storage.attempts import Attempt, add_attempt, read_attempts
from fastdeit.storage.jsonl import (
    AppendOnlyFile,
    append_lines,
    format_line,
    read_json_lines,
    read_records,
    replace_lines,
    restore_names,
)
from fastdeit.storage.run_folder import RunFolder
from tests.support.full_disk import limit_file_size

DEEP = b"[" * 100_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    step: int
    losses: tuple[float | str, ...] = ()


def test_appended_records_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    records = [Sample(step=1, losses=(0.5, "nan")), Sample(step=2)]
    append_lines(path, records[:1])
    append_lines(path, records[1:])
    assert read_records(path, Sample) == records
    assert path.read_text() == '{"step": 1, "losses": [0.5, "nan"]}\n{"step": 2, "losses": []}\n'


def test_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "missing") == []
    assert read_records(tmp_path / "missing", Sample) == []


def test_append_removes_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    append_lines(path, [Sample(step=1)])
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # what a kill leaves
    append_lines(path, [Sample(step=3)])
    assert [record.step for record in read_records(path, Sample)] == [1, 3]
    assert [line["step"] for line in read_json_lines(path)] == [1, 3]
    assert path.read_text() == '{"step": 1, "losses": []}\n{"step": 3, "losses": []}\n'


def test_append_ends_a_whole_line_that_has_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"step": 1}')
    append_lines(path, [{"step": 2}])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_append_to_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    append_lines(path, [{"step": 1}])
    with limit_file_size(20), pytest.raises(OSError, match="File too large"):
        append_lines(path, [{"step": 2}, {"step": 3}])
    assert path.read_text() == '{"step": 1}\n'


def test_append_waits_for_another_process_that_appends(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=append_lines, args=(path, [{"step": 2}]))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        other.write(b'{"step": 1}\n')
    thread.join()
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]


def parse_strictly(text: str) -> Any:
    """Return the value of a JSON text, as strict parsers do: refuse NaN, Infinity and lone
    surrogates."""
    return pydantic_core.from_json(text, allow_inf_nan=False)


def test_written_lines_are_strict_json_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    values = {"loss": math.nan, "norms": [math.inf, -math.inf, 1.5], "image": "a\udcff.png"}
    append_lines(path, [values])
    expected = {"loss": "nan", "norms": ["inf", "-inf", 1.5], "image": "a\\udcff.png"}
    assert parse_strictly(path.read_text()) == expected
    replace_lines(path, [values])
    assert parse_strictly(path.read_text()) == expected


def test_lines_of_older_versions_are_read(tmp_path: Path) -> None:
    """They may be blank, or hold what strict JSON lacks."""
    path = tmp_path / "file.jsonl"
    path.write_text(
        '\n{"split": "train", "row": 3, "fault": "NaN", "name": "a\\udcff", "x": NaN}\n\n'
    )
    (image,) = read_records(path, QuarantinedImage, strict=True)
    assert (image.row, image.name) == (3, "a\\udcff")


@pytest.mark.parametrize(
    "line", [b"", DEEP, b"[]", b"7", b"null", b'{"step": 2', b"\xff\xfe", b"\0", b'"text"']
)
def test_line_that_is_no_whole_object_is_skipped(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}]
    assert [record.step for record in read_records(path, Sample)] == [1, 3]


@pytest.mark.parametrize(
    "line", ['{"step": true}', '{"step": "1"}', '{"step": 1.5}', "{}", '{"step": 1, "losses": 2}']
)
def test_record_of_another_type_is_skipped_or_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"step": 1, "unknown": 2}\n' + line + "\n")
    assert read_records(path, Sample) == [Sample(step=1)]
    with pytest.raises(ValueError, match=r"file.jsonl: damaged line \(got "):
        read_records(path, Sample, strict=True)


def test_attempts_are_one_line_each(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    attempts = [
        Attempt(step, 2, 8, 1, False, "bf16", "exact", "cpu", left_out=(3, 5)) for step in (0, 40)
    ]
    folder.attempts.write_text("\n")  # as an older version began it
    for attempt in attempts:
        add_attempt(folder, attempt)
    assert read_attempts(folder) == attempts
    assert [parse_strictly(line)["step"] for line in folder.attempts.read_text().splitlines()] == [
        0,
        40,
    ]


def test_pending_records_are_bounded_and_losses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_PENDING", 5)
    warnings: list[str] = []
    path = tmp_path / "file"
    file = AppendOnlyFile(path, warnings.append)
    with limit_file_size(21):
        for number in range(10):
            file.append(f"line {number}\n".encode())
        file.append(b"x\n" * 99)
    file.append(b"last\n")
    kept = b"".join(f"line {number}\n".encode() for number in (0, 1, 2, 7, 8, 9))
    assert path.read_bytes() == kept + b"x\n" * 99 + b"last\n"
    assert warnings[1].endswith("can be written again; 4 records are lost")
    with limit_file_size(0):
        file.append(b"more")
        file.close()
    assert warnings[3].endswith("is incomplete; 1 record is lost")
    assert len(warnings) == 4


def test_names_that_are_not_utf8_are_restored() -> None:
    value = {"data": {"path": os.fsdecode(b"d\xe9\xff [b]"), "size": 3, "splits": None}}
    line = format_line(value)
    assert restore_names(json.loads(line)) == value
    assert "\\\\udce9" in line, "strict JSON has no surrogate"
