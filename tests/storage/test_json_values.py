"""JSON of unknown origin: nested, in one line of error."""

from pathlib import Path

import pytest

from fastdeit.storage.attempts import Attempt
from fastdeit.storage.json_values import MAX_DEPTH, load_json
from fastdeit.storage.jsonl import parse_record, read_json_lines, replace_lines

FLAT = "[" + ",".join(["{}"] * 1000) + "]"


def nest(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_what_python_reads_and_cannot_write_is_refused() -> None:
    assert load_json(FLAT) == [{}] * 1000
    assert load_json(nest(MAX_DEPTH)) and load_json(nest(MAX_DEPTH).encode())
    # Python's own limits differ: some depths are read, and fail when they are written
    for depth in (MAX_DEPTH + 1, 400, 900, 980, 3000, 100_000):
        for text in (nest(depth), nest(depth).encode(), '{"a":' * depth + "1" + "}" * depth):
            with pytest.raises(ValueError, match="deep|recursion"):
                load_json(text)


@pytest.mark.parametrize("depth", [400, 900, 980, 100_000])
def test_deep_lines_are_no_records(depth: int, tmp_path: Path) -> None:
    line = f'{{"step": 1, "settings": {nest(depth)}}}'
    with pytest.raises(ValueError):
        parse_record(line, Attempt)
    (tmp_path / "log.jsonl").write_text(f'{line}\n{{"step": 2}}\n')
    assert read_json_lines(tmp_path / "log.jsonl") == [{"step": 2}]
    replace_lines(tmp_path / "log.jsonl", read_json_lines(tmp_path / "log.jsonl"))
