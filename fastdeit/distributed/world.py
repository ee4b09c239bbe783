"""The process group: started the same way under the `deepspeed` launcher, torchrun, or alone."""

import atexit
import contextlib
import datetime
import functools
import ipaddress
import os
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist

Result = TypeVar("Result")

_TOLD, _LEFT = "fastdeit/told", "fastdeit/left"


@dataclass(frozen=True)
class World:
    """This process among all: its rank, the number of ranks, its place on the machine, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def threads(self) -> int:
        """CPU threads for this process's data pipeline: the machine's cores shared among its processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


def init_distributed(timeout_s: float = 1800) -> World:
    """Joins the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...), or makes one of one.

    timeout_s: of every collective. Raises ValueError for a port that is in use.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    deepspeed = import_deepspeed()
    if not dist.is_initialized():
        _choose_interface()
        try:
            deepspeed.init_distributed(verbose=False, timeout=datetime.timedelta(seconds=timeout_s))
        except dist.DistNetworkError as error:
            if os.environ["RANK"] != "0" or "EADDRINUSE" not in str(error):
                raise
            raise ValueError(
                f"--master_port: got {os.environ['MASTER_PORT']}, which is in use, allowed is a free one"
            ) from None
        atexit.register(
            dist.destroy_process_group
        )  # not earlier: DeepSpeed keeps groups of its own for the process's life
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = _local_size()
    os.environ.setdefault(
        "LOCAL_SIZE", str(local_size)
    )  # or ZeRO 3 asks the machine's topology at every step
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    world = World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # a core stays for DALI: OpenMP's threads wait for each other by spinning, and crawl when one has no core
        torch.set_num_threads(max(1, world.threads - 1))
    return world


def _choose_interface() -> None:
    """Has gloo use the network towards MASTER_ADDR, not that of the host's own name, which many hosts give to loopback.

    NCCL finds its networks itself. Raises ValueError if on several machines MASTER_ADDR means loopback on this one.
    """
    address, all_here = os.environ["MASTER_ADDR"], os.environ["WORLD_SIZE"] == str(_local_size())
    try:
        mine = _address_towards(address)
    except OSError:  # no such name, or no way there: what joins the others says it better
        return
    if not ipaddress.ip_address(mine).is_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_with(mine))
    elif not all_here:
        said = f"got {address}, which is {mine} on {socket.gethostname()}"
        raise ValueError(
            f"--master_addr: {said}, allowed is an address at which the other machines reach it"
        )


def _local_size() -> int:
    """The number of processes on this machine, as torchrun or DeepSpeed's launcher tells it."""
    told = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return next(int(size) for size in told if size)


def _address_towards(host: str) -> str:
    """The address of this machine from which a packet to `host` would go."""
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return probe.getsockname()[0].split("%")[0]


def _interface_with(address: str) -> str:
    known = (
        (name, found.address.split("%")[0])
        for name, each in psutil.net_if_addrs().items()
        for found in each
    )
    return next(name for name, theirs in known if theirs == address)


def import_deepspeed():  # type: ignore[no-untyped-def]  # deepspeed has no types
    """The `deepspeed` module, without its notices and without the build of an operator that training never calls.

    On a CPU, `deepspeed.init_distributed` would compile `deepspeed_shm_comm`, an all-reduce for inference: a minute, and a
    crash where there is no compiler (DeepSpeed 0.19.8).
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # torch renamed two collectives that DeepSpeed 0.19.8 still calls by their old names
    warnings.filterwarnings(
        "ignore",
        message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*",
        category=FutureWarning,
    )
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def on_rank0(action: Callable[[], Result]) -> Result:
    """What `action` returns on rank 0, on every rank. Raises rank 0's ValueError or OSError as a ValueError on every rank."""
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
    """What `action` returns on each rank, on every rank. Raises rank 0's ValueError or OSError on every rank, or else the first
    that any rank has, naming it."""
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
    """What `action` returns here. Raises the ValueError or OSError of any rank on every rank, as `on_every_rank`."""
    mine: list[Result] = []
    on_every_rank(lambda: mine.append(action()))
    return mine[0]


def is_told_by_rank0(limit_s: float = 3.0) -> bool:
    """Whether rank 0 ends for an error, too, within `limit_s`, and so says it for all; every rank that ends for one asks.

    No collective, for the others may wait in one that this rank will not reach: it asks the store through which they met.
    """
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") != "0"  # each machine's first process speaks
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set(_TOLD, "")
        return False
    try:
        store.wait([_TOLD], datetime.timedelta(seconds=limit_s))
    except dist.DistStoreError:
        return False
    except dist.DistError:  # the store went with rank 0
        return True
    return True


def first_on_rank0(build: Callable[[], Result]) -> Result:
    """`build()` on rank 0, then on each other machine's first rank, then on the rest, which find its files ready.

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


def leave_others(code: int) -> NoReturn:
    """Ends this rank, which has said why; the others, which then miss it, need say nothing (`was_left`)."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            dist.distributed_c10d._get_default_store().set(_LEFT, "")
    leave(code)


def was_left() -> bool:
    """Whether a rank has ended with `leave_others`."""
    if dist.is_initialized():
        with contextlib.suppress(dist.DistError):
            return dist.distributed_c10d._get_default_store().check([_LEFT])
    return False


class Ballot:
    """A small number of each rank, of which all learn the largest one call later.

    It goes through the hosts (gloo), on a GPU too: a vote neither waits for the device nor, as a rule, for another rank.
    """

    def __init__(self) -> None:
        self._sent: tuple[torch.Tensor, Any] | None = None

    def cast(self, value: int) -> int:
        """Sends `value`; the largest of the call before this one, the same on every rank, 0 at the first. A collective."""
        before, self._sent = self._sent, _send(value)
        return 0 if before is None else _outcome(*before)

    @staticmethod
    def of(value: int) -> int:
        """The largest `value` of this very call. A collective."""
        return _outcome(*_send(value))


def _send(value: int) -> tuple[torch.Tensor, Any]:
    vote = torch.tensor([value])
    return vote, dist.all_reduce(vote, dist.ReduceOp.MAX, _hosts(), async_op=True)


def _outcome(vote: torch.Tensor, work: Any) -> int:
    work.wait()
    return int(vote)


def meet() -> None:
    """Waits until every rank has come here and its device has done what it was given; after it a rank may end alone."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier(_hosts())


def leave(code: int) -> NoReturn:
    """Ends this process here: what libraries do on their way out takes seconds, and some wait for other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk below it takes nothing more
            stream.flush()
    os._exit(code)


@functools.cache
def _hosts() -> dist.ProcessGroup:
    """A group of all ranks over the hosts' network; a collective when it is first called."""
    return dist.new_group(backend="gloo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
