"""Votes and shared errors in a group of one process."""

import pytest

from fastdeit.distributed import collectives
from fastdeit.distributed.collectives import (
    AsyncMax,
    check_same_on_ranks,
    on_every_rank,
    on_rank0,
)
from fastdeit.distributed.world import init_distributed


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
    for run in (on_rank0, on_every_rank):
        with pytest.raises(ValueError, match="no file"):
            run(fail)


def test_fact_that_one_rank_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [("here", {"a": 1, "b": 2}), ("there", {"a": 1, "c": 3})]
    monkeypatch.setattr(collectives, "on_every_rank", lambda function: facts)
    with pytest.raises(ValueError, match=r"^rank 1 \(there\) differs .* b: 2, there None"):
        check_same_on_ranks({})
