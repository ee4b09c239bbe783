"""Operations of all ranks together: run an action, share its errors, vote, wait for each other."""

import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

Result = TypeVar("Result")
_POLL_S = 0.5
_HALF = 2**32 - 1


def on_rank0(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 and return its result on every rank.

    Raises rank 0's ValueError or OSError as a ValueError on every rank.
    """
    shared: list[Any] = [None, None]  # result, error
    if dist.get_rank() == 0:
        try:
            shared[0] = action()
        except (ValueError, OSError) as error:
            shared[1] = str(error)
    dist.broadcast_object_list(shared)
    if shared[1] is not None:
        raise ValueError(shared[1])
    return shared[0]


def on_every_rank(action: Callable[[], Result]) -> list[Result]:
    """Run `action` on every rank and return all results, by rank, on every rank.

    Raises the ValueError or OSError of the first rank that has one, as a ValueError on every rank;
    unless that is rank 0, the message names rank and host.
    """
    shared: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shared, _try(action))
    _raise_first([message for _, message in shared])
    return [result for result, _ in shared]


def each_rank(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank and return this rank's result. Raises as `on_every_rank`.

    The ranks first share one number, whether any has an error, as the cost of gathering objects
    grows, on each rank, with the number of ranks.
    """
    result, message = _try(action)
    if AsyncMax.now(int(message is not None)):
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
        _raise_first(messages)
    return cast(Result, result)


def _try(action: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """Return the result of an action, or None and the message of its ValueError or OSError."""
    try:
        return action(), None
    except (ValueError, OSError) as error:
        rank = dist.get_rank()
        prefix = "" if rank == 0 else f"rank {rank} ({socket.gethostname()}): "
        return None, f"{prefix}{error}"


def _raise_first(messages: Sequence[str | None]) -> None:
    for message in messages:
        if message is not None:
            raise ValueError(message)


def first_on_rank0(build: Callable[[], Result]) -> Result:
    """Run `build` on rank 0, then on each other machine's first rank, then on all other ranks,
    which find the files that it wrote; return this rank's result.

    Raises as `on_every_rank`.
    """
    results: list[Result] = []
    turn = _find_turn()
    for now in range(3):
        # all ranks take part in every turn, at least to receive its errors
        each_rank(lambda: results.append(build()) if turn == now else None)  # noqa: B023
    return results[0]


def on_each_machine(
    action: Callable[[Callable[[], bool]], None], proceed: Callable[[], bool] = lambda: True
) -> None:
    """Run `action` on the first rank of each machine, without a time limit: the other ranks do not
    wait in a collective, which would have one.

    proceed: called often on every rank while its work or that of another rank makes progress;
    returns False on a rank that must stop. action: takes a function that it must call often, which
    returns False once any rank must stop. Without a process group, this process is alone. Raises as
    `on_every_rank`.
    """
    if not dist.is_initialized():
        action(proceed)
        return
    work = _SharedWork(proceed)
    faults: list[Exception] = []
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            action(work.proceed)
        except (ValueError, OSError) as error:
            faults.append(error)
        work.finish()
    work.wait()
    each_rank(lambda: _raise(faults))


def _raise(faults: list[Exception]) -> None:
    if faults:
        raise faults[0]


class _SharedWork:
    """The work of the first rank of each machine, recorded in the process group's store for all
    ranks."""

    _count = 0

    def __init__(self, proceed: Callable[[], bool]) -> None:
        type(self)._count += 1  # the same on every rank
        self._name = f"fastdeit/work/{self._count}"
        self._proceed = proceed
        self._store = dist.distributed_c10d._get_default_store()
        self._machines = sum(on_every_rank(lambda: os.environ.get("LOCAL_RANK", "0") == "0"))

    def proceed(self) -> bool:
        """Report that the work makes progress; return False once any rank must stop."""
        self._add("moves")
        return self._ask()

    def _ask(self) -> bool:
        if not self._proceed():
            self._add("stops")
        return self._read("stops") == 0

    def finish(self) -> None:
        self._add("ends")

    def wait(self) -> None:
        """Wait until the work of all machines has ended."""
        moves = -1
        while self._read("ends") < self._machines:
            seen = self._read("moves")
            if seen != moves:
                self._ask()
            moves = seen
            time.sleep(_POLL_S)

    def _add(self, name: str) -> None:
        self._store.add(f"{self._name}/{name}", 1)

    def _read(self, name: str) -> int:
        return int(self._store.add(f"{self._name}/{name}", 0))


def _find_turn() -> int:
    if dist.get_rank() == 0:
        return 0
    return 1 if os.environ.get("LOCAL_RANK") == "0" else 2


def check_same_on_ranks(facts: Mapping[str, Any]) -> None:
    """Raise ValueError on every rank, which names what differs, unless all ranks have the facts of
    rank 0. A collective."""
    (_, ours), *others = on_every_rank(lambda: (socket.gethostname(), dict(facts)))
    for rank, (host, theirs) in enumerate(others, 1):
        changed = [
            f"{name}: {ours.get(name)!r}, there {theirs.get(name)!r}"
            for name in ours | theirs
            if ours.get(name) != theirs.get(name)
        ]
        if changed:
            raise ValueError(f"rank {rank} ({host}) differs from rank 0 in {'; '.join(changed)}")


def all_agree(ok: bool) -> bool:
    """Return True if `ok` is True on every rank. A collective."""
    return not AsyncMax.now(int(not ok))


def sum_on_ranks(number: int) -> int:
    """Return the sum over all ranks of a number of at most 64 bits, modulo 2^64. A collective."""
    # halves: a sum of 64-bit numbers would overflow
    halves = torch.tensor([number & _HALF, number >> 32])
    dist.all_reduce(halves, group=_gloo_group())
    low, high = halves.tolist()
    return int(low + (high << 32)) % 2**64


class AsyncMax:
    """The maximum over ranks of a small number, which is known one call later.

    It is computed by the hosts (gloo), also with GPUs: a call waits neither for the device nor, in
    general, for another rank.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, Any] | None = None

    def submit(self, value: int) -> int:
        """Send `value`; return the maximum of the call before this one, 0 at the first call. A
        collective."""
        before = self._sent
        self._sent = _send(value)
        return 0 if before is None else _wait_for(*before)

    @staticmethod
    def now(value: int) -> int:
        """Return the maximum of this call. A collective."""
        return _wait_for(*_send(value))


def _send(value: int) -> tuple[torch.Tensor, Any]:
    vote = torch.tensor([value])
    return vote, dist.all_reduce(vote, dist.ReduceOp.MAX, _gloo_group(), async_op=True)


def _wait_for(vote: torch.Tensor, work: Any) -> int:
    work.wait()
    return int(vote)


def barrier() -> None:
    """Wait until every rank has called this and its device is idle; then a rank may exit alone. A
    collective."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier(_gloo_group())


def _gloo_group() -> dist.ProcessGroup:
    """Return the group of all ranks over the hosts' network. The first call is a collective."""
    return _make_gloo_group(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _make_gloo_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return a Gloo group of all ranks; world: the default group, which differs if a process starts
    another one."""
    # torch's own timeout is half an hour, whatever the limits of the run are
    store: Any = dist.distributed_c10d._get_default_store()
    return dist.new_group(backend="gloo", timeout=store.timeout)
