"""What all ranks do together: run an action on some of them, share its errors, vote, wait for each
other."""

import functools
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def on_rank0(action: Callable[[], Result]) -> Result:
    """What `action` returns on rank 0, on every rank. Raises rank 0's ValueError or OSError as a
    ValueError on every rank."""
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except (ValueError, OSError) as failure:
            answer[1] = str(failure)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def on_every_rank(action: Callable[[], Result]) -> list[Result]:
    """What `action` returns on each rank, on every rank. Raises rank 0's ValueError or OSError on
    every rank, or else the first that any rank has, naming it."""
    answers: list[Any] = [None] * dist.get_world_size()
    answer: tuple[Result | None, str | None]
    try:
        answer = action(), None
    except (ValueError, OSError) as failure:
        answer = (
            None,
            str(failure)
            if dist.get_rank() == 0
            else f"rank {dist.get_rank()} ({socket.gethostname()}): {failure}",
        )
    dist.all_gather_object(answers, answer)
    error = next((error for _, error in answers if error is not None), None)
    if error is not None:
        raise ValueError(error)
    return [result for result, _ in answers]


def each_rank(action: Callable[[], Result]) -> Result:
    """What `action` returns here. Raises the ValueError or OSError of any rank on every rank, as
    `on_every_rank`."""
    mine: list[Result] = []
    on_every_rank(lambda: mine.append(action()))
    return mine[0]


def first_on_rank0(build: Callable[[], Result]) -> Result:
    """`build()` on rank 0, then on each other machine's first rank, then on the rest, which find
    its files ready.

    Raises the ValueError or OSError of any rank on every rank, as `on_every_rank`.
    """
    results: list[Result] = []
    turn = 0 if dist.get_rank() == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    for now in range(3):
        on_every_rank(lambda: results.append(build()) if turn == now else None)  # noqa: B023
    return results[0]


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds on every rank; a collective."""
    votes = [False] * dist.get_world_size()
    dist.all_gather_object(votes, ok)
    return all(votes)


class AsyncMax:
    """A small number of each rank, of which all learn the largest one call later.

    It goes through the hosts (gloo), on a GPU too: a vote neither waits for the device nor, as a
    rule, for another rank.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, Any] | None = None

    def submit(self, value: int) -> int:
        """Sends `value`; the largest of the call before this one, the same on every rank, 0 at the
        first. A collective."""
        before, self._sent = self._sent, _send(value)
        return 0 if before is None else _outcome(*before)

    @staticmethod
    def now(value: int) -> int:
        """The largest `value` of this very call. A collective."""
        return _outcome(*_send(value))


def _send(value: int) -> tuple[torch.Tensor, Any]:
    vote = torch.tensor([value])
    return vote, dist.all_reduce(vote, dist.ReduceOp.MAX, _hosts(), async_op=True)


def _outcome(vote: torch.Tensor, work: Any) -> int:
    work.wait()
    return int(vote)


def barrier() -> None:
    """Waits until every rank has come here and its device has done what it was given; after it a
    rank may end alone."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier(_hosts())


@functools.cache
def _hosts() -> dist.ProcessGroup:
    """A group of all ranks over the hosts' network; a collective when it is first called."""
    return dist.new_group(backend="gloo")
