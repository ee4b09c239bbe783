"""The table of launches: the row chosen for a call, and the search of `benchmarks.tune`.

.venv/bin/python -m pytest tests/kernels/test_launch_configs.py, about 3 s
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton

from benchmarks import tune
from fastdeit.kernels import launch_configs

CPU = torch.device("cpu")
EDGES = [size + more for size in (16, 64, 128, 224, 256) for more in (0, 1)]
"""Numbers of tokens beside which another row begins."""


def make_row(arch: int, dim: int, tokens: int, block: int) -> dict:
    launch = {"BLOCK": block, "num_warps": 4}
    return {"op": "k", "arch": arch, "bits": 16, "D": dim, "N": tokens, "launch": launch}


TABLE = [
    make_row(80, 64, 0, 1),
    make_row(80, 128, 0, 2),
    make_row(90, 64, 256, 3),
    make_row(90, 64, 1024, 4),
    make_row(90, 128, 0, 5),
]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    rows = [row | {"launch": dict(row["launch"])} for row in TABLE]
    monkeypatch.setattr(launch_configs, "rows", lambda: rows)
    launch_configs._find_row.cache_clear()
    yield rows
    launch_configs._find_row.cache_clear()


@pytest.mark.parametrize(
    ("arch", "dim", "tokens", "block"),
    [
        (90, 64, 198, 3),
        (90, 64, 256, 3),
        (90, 64, 257, 4),
        (90, 64, 5000, 4),
        (90, 32, 1, 3),
        (90, 96, 198, 5),
        (90, 512, 1, 5),
        (80, 64, 198, 1),
        (86, 65, 198, 2),
        (100, 64, 300, 4),
    ],
)
def test_nearest_row_that_covers_the_call_is_chosen(
    table: list[dict], monkeypatch: pytest.MonkeyPatch, arch: int, dim: int, tokens: int, block: int
) -> None:
    monkeypatch.setattr(launch_configs, "arch", lambda device: arch)
    assert launch_configs.find_launch("k", CPU, D=dim, N=tokens) == {"BLOCK": block, "num_warps": 4}


def test_missing_row_raises_lookup_error(
    table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match="no launch of k for 32 bits on sm_90"):
        launch_configs.find_launch("k", CPU, bits=32)
    monkeypatch.setattr(launch_configs, "arch", lambda device: 75)
    with pytest.raises(LookupError, match="sm_75"):
        launch_configs.find_launch("k", CPU)


def test_returned_launch_is_a_copy(table: list[dict]) -> None:
    launch_configs.find_launch("k", CPU)["BLOCK"] = 99
    assert launch_configs.find_launch("k", CPU)["BLOCK"] != 99


def test_newest_row_that_the_installed_triton_supports_is_chosen(
    table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    table.append(make_row(90, 64, 256, 6) | {"triton": "3.9"})
    table.append(make_row(90, 64, 256, 7) | {"triton": "3.10"})
    for version, block in (((3, 6), 3), ((3, 9), 6), ((3, 10), 7), ((4, 0), 7)):
        monkeypatch.setattr(launch_configs, "TRITON", version)
        launch_configs._find_row.cache_clear()
        assert launch_configs.find_launch("k", CPU, D=64, N=198)["BLOCK"] == block
        # the sizes without a row of their own for a version have that of any version
        assert launch_configs.find_launch("k", CPU, D=64, N=300)["BLOCK"] == 4


def test_versions_are_compared_as_numbers() -> None:
    assert launch_configs.version_of("3.9.0") == launch_configs.version_of("3.9.1+git1") == (3, 9)
    assert launch_configs.version_of("3.10") > launch_configs.version_of("3.9.1")


def test_form_is_that_of_the_row(table: list[dict]) -> None:
    table.append({"op": "f", "arch": 80, "bits": 16, "D": 64, "N": 128, "form": "near"})
    table.append({"op": "f", "arch": 80, "bits": 16, "D": 64, "N": 256, "form": "far"})
    assert launch_configs.find_form("f", CPU, D=64, N=100) == "near"
    assert launch_configs.find_form("f", CPU, D=64, N=198) == "far"


def test_checked_in_table_is_valid() -> None:
    keys = [
        (row["op"], row["arch"], row["bits"], row["D"], row["N"], row.get("triton"))
        for row in launch_configs.rows()
    ]
    assert len(set(keys)) == len(keys) > 40
    for row in launch_configs.rows():
        contents = {"form"} if row["op"] in launch_configs.FORMS else {"launch"}
        assert set(row) - {"triton"} == {"op", "arch", "bits", "D", "N"} | contents
        if "form" in row:
            assert row["form"] in launch_configs.FORMS[row["op"]]
            continue
        assert row["launch"]["num_warps"] in (1, 2, 4, 8, 16)
        assert all(type(value) is int and value > 0 for value in row["launch"].values())
    # every op has a row for the oldest architecture, so that no architecture is without one; the
    # form "ahead" is for those whose shared memory holds it
    oldest = {key[0] for key in keys if key[1] == 80}
    assert oldest == {key[0] for key in keys} - {"attention_bwd_ahead"}


@pytest.mark.parametrize("version", [(3, 6), (3, 9)], ids=["3.6", "3.9"])
@pytest.mark.parametrize(("arch", "most"), [(80, 128), (90, 256)])
def test_one_program_of_attention_holds_every_image_that_has_the_form(
    arch: int, most: int, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_configs, "arch", lambda device: arch)
    monkeypatch.setattr(launch_configs, "TRITON", version)
    launch_configs._find_row.cache_clear()
    longest = 0
    for tokens, dim, bits in itertools.product(EDGES, (32, 64, 96, 128), (16, 32)):
        sizes = {"bits": bits, "D": dim, "N": tokens}
        if launch_configs.find_form("attention_bwd", CPU, **sizes) == "whole":
            launch = launch_configs.find_launch("attention_bwd_whole", CPU, **sizes)
            assert launch["BLOCK_M"] >= tokens, sizes
            longest = max(longest, tokens)
    launch_configs._find_row.cache_clear()
    assert longest == most


def test_tuning_finds_the_fastest_correct_launch(
    table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = table[3]

    def call() -> list[torch.Tensor]:
        launch = launch_configs.find_launch("k", CPU, D=64, N=1024)
        return [torch.full((1,), -1.0 if launch["BLOCK"] == 32 else 1.0)]

    def time_of(call: tune.Call, expected: list[torch.Tensor] | None = None) -> float:
        launch = launch_configs.find_launch("k", CPU, D=64, N=1024)
        if expected is not None and not torch.equal(call()[0], expected[0]):
            return float("inf")
        # BLOCK 32 is the fastest, but its result is wrong
        return abs(launch["BLOCK"] - 32) + abs(launch["num_warps"] - 2) + 1.0

    assert tune.rows_of(call) == [row]
    monkeypatch.setattr(tune, "time_of", time_of)
    tune.tune(call, math.inf)
    (new,) = (other for other in table if other.get("triton") == tune.TRITON)
    assert new["launch"] == {"BLOCK": 16, "num_warps": 2} and new["N"] == row["N"]
    # another version of Triton has the same launches as before
    assert [other["launch"] for other in table if other is not new] == [
        other["launch"] for other in TABLE
    ]


def add_forms(table: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the op "f" with the forms "old", of the table, and "new", each with a launch."""
    monkeypatch.setitem(launch_configs.FORMS, "f", ("new", "old"))
    sizes = {"arch": 90, "bits": 16, "D": 0, "N": 0}
    table.append({"op": "f", **sizes, "form": "old"})
    for form, block in (("old", 16), ("new", 64)):
        launch = {"BLOCK": block, "num_warps": 4}
        table.append({"op": f"f_{form}", **sizes, "launch": launch})


@pytest.mark.parametrize(
    ("ms", "result", "kept"),
    [((9.0, 5.0), 1.0, "new"), ((5.0, 9.0), 1.0, "old"), ((9.0, 5.0), -1.0, "old")],
    ids=["faster", "slower", "wrong"],
)
def test_tuning_keeps_another_form_only_where_it_is_faster_and_right(
    ms: tuple[float, float],
    result: float,
    kept: str,
    table: list[dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_forms(table, monkeypatch)

    def call() -> list[torch.Tensor]:
        form = launch_configs.find_form("f", CPU)
        launch_configs.find_launch(f"f_{form}", CPU)
        return [torch.full((1,), 1.0 if form == "old" else result)]

    def time_of(call: tune.Call, expected: list[torch.Tensor]) -> float:
        form = launch_configs.find_form("f", CPU)
        launch = launch_configs.find_launch(f"f_{form}", CPU)
        is_right = torch.equal(call()[0], expected[0])
        # as it is in the table, the form "new" is slower than "old"
        return ms[form == "new"] + abs(launch["BLOCK"] - 16) if is_right else math.inf

    monkeypatch.setattr(tune, "time_of", time_of)
    tune.tune(call, math.inf)
    assert launch_configs.find_form("f", CPU) == kept
    monkeypatch.setattr(launch_configs, "TRITON", (3, 0))
    launch_configs._find_row.cache_clear()
    assert launch_configs.find_form("f", CPU) == "old"


def test_tuning_changes_nothing_after_the_deadline(
    table: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_forms(table, monkeypatch)

    def call() -> list[torch.Tensor]:
        form = launch_configs.find_form("f", CPU)
        return [torch.full((1,), float(launch_configs.find_launch(f"f_{form}", CPU)["BLOCK"]))]

    monkeypatch.setattr(tune, "time_of", lambda call, expected: 1.0 / call()[0].item())
    tune.tune(call, -math.inf)
    assert call() == [torch.tensor([16.0])] and launch_configs.find_form("f", CPU) == "old"


def test_written_table_has_no_row_that_an_older_triton_has_too(
    table: list[dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch_configs, "TABLE", tmp_path / "launch_configs.json")
    changed = tune.own(table[0])
    changed["launch"]["BLOCK"] = 8
    tune.own(table[1])
    tune.write()
    written = json.loads((tmp_path / "launch_configs.json").read_text())
    assert [row for row in written if "triton" in row] == [changed]
    assert len(written) == len(TABLE) + 1


def test_new_architecture_starts_from_copied_rows(table: list[dict]) -> None:
    tune.adopt(100)
    new = [row for row in table if row["arch"] == 100]
    assert [row["launch"] for row in new] == [row["launch"] for row in TABLE if row["arch"] == 90]
    new[0]["launch"]["BLOCK"] = 64
    assert table[2]["launch"]["BLOCK"] == 3
    tune.adopt(100)
    assert len([row for row in table if row["arch"] == 100]) == len(new)


def test_neighbours_differ_in_one_number_or_in_a_block_and_the_warps() -> None:
    launch = {"BLOCK_M": 64, "num_warps": 4, "num_stages": 1}
    found = list(tune.neighbours(launch))
    assert launch | {"BLOCK_M": 32} in found
    assert launch | {"num_stages": 2} in found
    assert launch | {"BLOCK_M": 32, "num_warps": 2} in found
    changes = [{name for name in launch if other[name] != launch[name]} for other in found]
    assert all(len(change) == 1 or change == {"BLOCK_M", "num_warps"} for change in changes)
    assert all(other["num_stages"] >= 1 for other in found)


def test_architecture_of_a_device_is_queried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queried: list[int] = []

    def capability(index: int) -> tuple[int, int]:
        queried.append(index)
        return (9, index)

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch_configs._arch_of.cache_clear()
    try:
        for index in (0, 1, 0, 1):
            assert launch_configs.arch(torch.device("cuda", index)) == 90 + index
        assert launch_configs.arch(torch.device("cuda")) == 91
        assert launch_configs.arch(CPU) == 90
        assert queried == [0, 1]
    finally:
        launch_configs._arch_of.cache_clear()


@pytest.mark.parametrize(
    ("size", "block", "count"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (12, 1, 12)]
)
def test_blocks_of_rounds_up(size: int, block: int, count: int) -> None:
    assert launch_configs.blocks_of(size, block) == count == triton.cdiv(size, block)


def test_padded_sizes_are_the_next_powers_of_two() -> None:
    for size in range(1, 3000):
        assert launch_configs.padded(size) == triton.next_power_of_2(size)
