"""Votes and shared errors in a group of one process, and work of one process a machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdeit.distributed import collectives
from fastdeit.distributed.collectives import (
    AsyncMax,
    all_agree,
    check_same_on_ranks,
    each_rank,
    on_each_machine,
    on_every_rank,
    on_rank0,
    sum_on_ranks,
)
from fastdeit.distributed.world import init_distributed
from tests.support.ranks import Ranks


@pytest.fixture(autouse=True, scope="module")
def group() -> None:
    init_distributed()


def test_vote_is_known_one_call_later() -> None:
    votes = AsyncMax()
    assert [votes.submit(value) for value in (0, 3, 0, 1, 0)] == [0, 0, 3, 0, 1]
    assert AsyncMax.now(2) == 2


def test_error_of_one_rank_is_raised_on_all() -> None:
    def fail() -> None:
        raise FileNotFoundError("no file")

    assert on_rank0(lambda: 3) == 3
    assert on_every_rank(lambda: 4) == [4]
    assert each_rank(lambda: 5) == 5
    for run in (on_rank0, on_every_rank, each_rank):
        with pytest.raises(ValueError, match="no file"):
            run(fail)


def test_fact_that_one_rank_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [("here", {"a": 1, "b": 2}), ("there", {"a": 1, "c": 3})]
    monkeypatch.setattr(collectives, "on_every_rank", lambda function: facts)
    with pytest.raises(ValueError, match=r"^rank 1 \(there\) differs .* b: 2, there None"):
        check_same_on_ranks({})


def test_work_of_each_machine_is_done_once_and_its_error_is_raised() -> None:
    done: list[bool] = []
    on_each_machine(lambda proceed: done.append(proceed()))
    assert done == [True]
    with pytest.raises(ValueError, match="no network"):
        on_each_machine(_fail)


def _fail(proceed: Callable[[], bool]) -> None:
    raise OSError("no network")


def _work_on_two_machines(folder: Path) -> int:
    """Have ranks 0 and 2 of three be the first of their machines; rank 2 works for longer than a
    collective may last, until rank 1, which waits, is asked to stop."""
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = "1" if rank == 1 else "0"
    init_distributed(timeout_s=1)
    started = time.monotonic()

    def action(proceed: Callable[[], bool]) -> None:
        (folder / f"worked-{rank}").touch()
        while rank == 2 and proceed() and time.monotonic() < started + 60:
            time.sleep(0.05)

    on_each_machine(action, lambda: rank != 1 or time.monotonic() < started + 2)
    return 0 if 2 <= time.monotonic() - started < 60 else 1


def test_ranks_wait_for_another_machine_and_stop_it(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", _work_on_two_machines, tmp_path, world_size=3)
    assert ranks.wait() == 0, (tmp_path / "log").read_text()
    assert sorted(path.name for path in tmp_path.glob("worked-*")) == ["worked-0", "worked-2"]


LARGE = 2**64 - 5


def _agree(log: Path) -> int:
    """Have rank 1 of two disagree, fail, and be late."""
    first = os.environ["RANK"] == "0"
    init_distributed(timeout_s=2)
    assert sum_on_ranks(LARGE) == (2 * LARGE) % 2**64
    assert all_agree(True) and not all_agree(first)
    with pytest.raises(ValueError, match=r"^rank 1 \(.*\): planted$"):
        each_rank(lambda: None if first else _plant())
    if not first:
        time.sleep(6)
        return 0
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        AsyncMax.now(1)
    return 0 if time.monotonic() - started < 5 else 1


def _plant() -> None:
    raise ValueError("planted")


def test_ranks_vote_add_and_share_errors_within_the_time_limit(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", _agree, tmp_path)
    assert ranks.wait() == 0, ranks.output
