"""The table of launches: the row chosen for a call, and the search of `benchmarks.tune`.

.venv/bin/python -m pytest tests/kernels/test_launch_configs.py, about 3 s
"""

from collections.abc import Iterator

import pytest
import torch
import triton

from benchmarks import tune
from fastdeit.kernels import launch_configs

CPU = torch.device("cpu")


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
    launch_configs._find_launch.cache_clear()
    yield rows
    launch_configs._find_launch.cache_clear()


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


def test_checked_in_table_is_valid() -> None:
    keys = [
        (row["op"], row["arch"], row["bits"], row["D"], row["N"]) for row in launch_configs.rows()
    ]
    assert len(set(keys)) == len(keys) > 40
    for row in launch_configs.rows():
        assert set(row) == {"op", "arch", "bits", "D", "N", "launch"}
        assert row["launch"]["num_warps"] in (1, 2, 4, 8, 16)
        assert all(type(value) is int and value > 0 for value in row["launch"].values())
    # every op has a row for the oldest architecture, so that no architecture is without one
    assert {key[0] for key in keys if key[1] == 80} == {key[0] for key in keys}


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
    tune.improve(row, call)
    assert row["launch"] == {"BLOCK": 16, "num_warps": 2}
    assert table[2]["launch"] == TABLE[2]["launch"]


@pytest.mark.parametrize(
    ("ms", "result", "kept"),
    [((9.0, 5.0), (1.0, 1.0), 2), ((5.0, 9.0), (1.0, 1.0), 1), ((9.0, 5.0), (1.0, -1.0), 1)],
    ids=["faster", "slower", "wrong"],
)
def test_tuning_keeps_the_last_form_only_where_it_is_faster_and_right(
    ms: tuple[float, float],
    result: tuple[float, float],
    kept: int,
    table: list[dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = table[4]["launch"]
    launch["FORM"] = 1

    def call() -> list[torch.Tensor]:
        return [torch.full((1,), result[launch["FORM"] - 1])]

    def time_of(call: tune.Call, expected: list[torch.Tensor]) -> float:
        is_right = torch.equal(call()[0], expected[0])
        return ms[launch["FORM"] - 1] + launch["num_warps"] / 8 if is_right else float("inf")

    monkeypatch.setattr(tune, "time_of", time_of)
    tune.improve(table[4], call)
    assert launch["FORM"] == kept


def test_new_architecture_starts_from_copied_rows(table: list[dict]) -> None:
    tune.adopt(100)
    new = [row for row in table if row["arch"] == 100]
    assert [row["launch"] for row in new] == [row["launch"] for row in TABLE if row["arch"] == 90]
    new[0]["launch"]["BLOCK"] = 64
    assert table[2]["launch"]["BLOCK"] == 3
    tune.adopt(100)
    assert len([row for row in table if row["arch"] == 100]) == len(new)


def test_neighbours_differ_in_one_number() -> None:
    launch = {"BLOCK_M": 64, "num_warps": 4, "num_stages": 1}
    found = list(tune.neighbours(launch))
    assert launch | {"BLOCK_M": 32} in found
    assert launch | {"num_stages": 2} in found
    assert all(sum(other[name] != launch[name] for name in launch) == 1 for other in found)
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
