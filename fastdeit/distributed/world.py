"""The process group: under the `deepspeed` launcher, under torchrun, or of one process alone."""

import atexit
import contextlib
import datetime
import ipaddress
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import psutil
import torch
import torch.distributed as dist

from fastdeit.distributed.environment import count_local_ranks, is_alone
from fastdeit.distributed.roll_call import call_roll, open_store


@dataclass(frozen=True)
class World:
    """This process among all ranks: its place in the group and on the machine, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def threads(self) -> int:
        """Return the number of CPU threads of this process's data pipeline, its share of the
        cores."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


def init_distributed(timeout_s: float = 1800) -> World:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...),
    or start a group of this process alone; return the place of this process.

    timeout_s: of every collective. Raises ValueError for a port that is in use, and as `call_roll`.
    """
    deepspeed = import_deepspeed()
    if not dist.is_initialized():
        timeout = datetime.timedelta(seconds=timeout_s)
        if "RANK" in os.environ:
            _join(deepspeed, timeout)
        else:
            _start_alone(deepspeed, timeout)
        # not earlier: DeepSpeed has its own groups until the process ends
        atexit.register(_leave)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = 1 if is_alone() else count_local_ranks()
    # without it, ZeRO 3 looks up the machine's topology at every step
    os.environ.setdefault("LOCAL_SIZE", str(local_size))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    world = World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # one core is for DALI: OpenMP's threads wait for each other by spinning, and become very
        # slow when one of them has no core
        torch.set_num_threads(max(1, world.threads - 1))
    return world


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(deepspeed: ModuleType, timeout: datetime.timedelta) -> None:
    """Join the other ranks that a launcher has started, once all have arrived."""
    _choose_interface()
    try:
        store = open_store(timeout)
        call_roll(store, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        deepspeed.init_distributed(verbose=False, timeout=timeout)
    except dist.DistNetworkError as error:
        if os.environ["RANK"] != "0" or "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise ValueError(f"--master_port must be a free port (got {port}, in use)") from None


def _start_alone(deepspeed: ModuleType, timeout: datetime.timedelta) -> None:
    """Start a process group of one, which needs no port: its store is in this process."""
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed's engine reads it there
    backend = deepspeed.accelerator.get_accelerator().communication_backend_name()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    deepspeed.init_distributed(verbose=False, timeout=timeout)


def _choose_interface() -> None:
    """Make gloo use the network interface towards MASTER_ADDR.

    By default gloo uses the interface of the host's own name, which on many hosts is loopback. NCCL
    finds its networks itself. Raises ValueError if there are several machines, and MASTER_ADDR is
    loopback on this one.
    """
    address = os.environ["MASTER_ADDR"]
    one_machine = os.environ["WORLD_SIZE"] == str(count_local_ranks())
    try:
        mine = _address_towards(address)
    except OSError:  # no such name, or no route: joining the others gives a better message
        return
    if not ipaddress.ip_address(mine).is_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_with(mine))
    elif not one_machine:
        got = f"got {address}, which is {mine} on {socket.gethostname()}"
        raise ValueError(
            f"--master_addr must be an address at which the other machines reach this one ({got})"
        )


def _address_towards(host: str) -> str:
    """Return the address of this machine from which a packet to `host` would be sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return _without_zone(probe.getsockname()[0])


def _interface_with(address: str) -> str:
    for name, entries in psutil.net_if_addrs().items():
        if any(_without_zone(entry.address) == address for entry in entries):
            return name
    raise ValueError(f"no network interface has the address {address}")


def _without_zone(address: str) -> str:
    """Return an IPv6 address without its zone ("fe80::1%eth0"), any other address unchanged."""
    return address.split("%")[0]


def import_deepspeed() -> ModuleType:
    """Return the `deepspeed` module, without its notices, and without the build of an operator that
    training never calls.

    On a CPU, `deepspeed.init_distributed` would compile `deepspeed_shm_comm`, an all-reduce for
    inference: that takes a minute, and fails without a compiler (DeepSpeed 0.19.8). The table of
    operators that can be built is set here, as DeepSpeed would start a compiler to make it.
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

    # not `deepspeed.ops.__compatible_ops__`, which would make the table
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.addFilter(_is_wanted)
    return deepspeed


@contextlib.contextmanager
def without_muon() -> Iterator[None]:
    """Hide the optimizer Muon, which training never uses, from DeepSpeed.

    `deepspeed.initialize` imports it to compare types, and with it torch's compiler, which takes
    half a second or more (DeepSpeed 0.19.8).
    """
    name = "deepspeed.runtime.zero.muon.muon_optimizer"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _is_wanted(record: logging.LogRecord) -> bool:
    """Return False for DeepSpeed's warning of an optimizer that it does not list, as our LAMB."""
    return "untested optimizer" not in record.getMessage()
