"""The process group: started the same way under the `deepspeed` launcher, torchrun, or alone."""

import atexit
import datetime
import ipaddress
import os
import socket
import warnings
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among all: its rank, the number of ranks, its place on the machine, and its
    device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def threads(self) -> int:
        """CPU threads for this process's data pipeline: the machine's cores shared among its
        processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


def init_distributed(timeout_s: float = 1800) -> World:
    """Joins the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...),
    or makes one of one.

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
        # a core stays for DALI: OpenMP's threads wait for each other by spinning, and crawl when
        # one has no core
        torch.set_num_threads(max(1, world.threads - 1))
    return world


def _choose_interface() -> None:
    """Has gloo use the network towards MASTER_ADDR, not that of the host's own name, which many
    hosts give to loopback.

    NCCL finds its networks itself. Raises ValueError if on several machines MASTER_ADDR means
    loopback on this one.
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
    """The `deepspeed` module, without its notices and without the build of an operator that
    training never calls.

    On a CPU, `deepspeed.init_distributed` would compile `deepspeed_shm_comm`, an all-reduce for
    inference: a minute, and a crash where there is no compiler (DeepSpeed 0.19.8).
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
