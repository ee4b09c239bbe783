"""Checks of the names, ports and environment variables that the ranks of a run depend on."""

import os
import socket

import psutil

from fastdeit.distributed.environment import is_alone
from fastdeit.doctor.findings import Finding, Target, absent, fail, good, warn, warn_of

PORT = 29500
"""The usual port of DeepSpeed's launcher and of torchrun."""
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_SLOW = {
    "NCCL_P2P_DISABLE": ("1", "GPUs of one machine exchange through the host"),
    "NCCL_IB_DISABLE": ("1", "machines exchange over TCP"),
    "NCCL_SHM_DISABLE": ("1", "GPUs of one machine exchange over TCP"),
    "CUDA_LAUNCH_BLOCKING": ("1", "the host waits for each kernel"),
    "TORCH_NCCL_BLOCKING_WAIT": ("1", "the host waits for each collective"),
    "TRITON_INTERPRET": ("1", "kernels run in Python"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "each collective is checked"),
}
"""The value of an environment variable that costs speed, and why, by variable."""


def check_names(target: Target) -> Finding:
    """Check whether the host's own name, loopback and MASTER_ADDR have addresses."""
    host = socket.gethostname()
    faults = []
    for name in dict.fromkeys((host, "localhost", os.environ.get("MASTER_ADDR", "localhost"))):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            faults.append((f"{name!r} has no address", f"add {name} to /etc/hosts"))
    loopback = [family for family in ("IPv4", "IPv6") if _can_bind(family)]
    if "IPv4" not in loopback:
        faults.append(("no IPv4 loopback", "ip link set lo up"))
    return warn_of(f"{host}; loopback {' and '.join(loopback) or 'missing'}", faults)


def _can_bind(family: str) -> bool:
    kind, address = {
        "IPv4": (socket.AF_INET, "127.0.0.1"),
        "IPv6": (socket.AF_INET6, "::1"),
    }[family]
    try:
        with socket.socket(kind) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def check_port(target: Target) -> Finding:
    """Check whether the launchers' usual port is free; a launcher that runs has its own port."""
    if not is_alone():
        return absent(f"the launcher uses {os.environ.get('MASTER_PORT', PORT)}")
    port = int(os.environ.get("MASTER_PORT") or PORT)
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        cure = "start with another --master_port (torchrun: --master-port)"
        return warn(f"port {port}: {error.strerror}", cure)
    return good(f"port {port} is free")


def check_variables(target: Target) -> Finding:
    """Look for environment variables that make training slow, or name a network interface that does
    not exist."""
    faults = [_describe_slow(name) for name, (value, _) in _SLOW.items() if _is_set(name, value)]
    faults += [fault for name in _INTERFACES for fault in _check_interface(name)]
    faults += _check_threads()
    names = [name for name in os.environ if name.startswith(("NCCL_", "GLOO_", "TORCH_NCCL_"))]
    return warn_of(f"set: {', '.join(sorted(names))}" if names else "none of NCCL or gloo", faults)


def _is_set(name: str, value: str) -> bool:
    return os.environ.get(name, "").upper() == value


def _describe_slow(name: str) -> tuple[str, str]:
    value, why = _SLOW[name]
    return f"{name}={value}: {why}", f"unset {name}"


def _check_interface(name: str) -> list[tuple[str, str]]:
    """Return the fault of an environment variable that names only network interfaces which do not
    exist, or nothing.

    NCCL reads prefixes of names, after ^ those to avoid, after = whole names.
    """
    value = os.environ.get(name, "")
    here = list(psutil.net_if_addrs())
    if not value or value.startswith("^"):
        return []
    wanted = value.removeprefix("=").split(",")
    if any(one.startswith(prefix) for one in here for prefix in wanted):
        return []
    return [(f"{name}={value} is no interface here", f"set it to one of {', '.join(here)}")]


def _check_threads() -> list[tuple[str, str]]:
    text = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0))
    if text.isdigit() and int(text) > cores:
        return [(f"OMP_NUM_THREADS={text} on {cores} cores", "unset OMP_NUM_THREADS")]
    return []


def check_nccl(target: Target) -> Finding:
    """Name the version of NCCL that torch was built with."""
    import torch
    import torch.distributed as dist

    if not target.gpus:
        return absent("no GPU: ranks exchange through gloo")
    if not dist.is_nccl_available():
        return fail("torch has no NCCL", "install a torch for CUDA (pytorch.org/get-started)")
    version = torch.cuda.nccl.version()
    return good(f"NCCL {'.'.join(map(str, version))}")
