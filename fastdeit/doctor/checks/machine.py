"""Checks of the machine: system, cores, memory, limits, clock, encoding."""

import datetime
import locale
import os
import platform
import resource
import sys
import time
from pathlib import Path

import psutil

from fastdeit.distributed.environment import count_local_ranks, is_alone
from fastdeit.doctor.findings import GIB, MIB, Finding, Target, fail, good, warn, warn_of
from fastdeit.storage.urls import find_user_cache

CGROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
_CONTAINERS = {
    "/.dockerenv": "Docker",
    "/run/.containerenv": "Podman",
    "/.singularity.d": "Apptainer",
}
_FEW_CORES = 4  # for each GPU
_OPEN_FILES = 1024
_LEAST_MEMORY = 4 * GIB
"""The memory that a process needs at least: libraries, DALI's buffers, a small model."""
_UNLIMITED = 2**60
"""The bytes from which a limit is none: cgroup 1 writes a very large number."""


def check_system(target: Target) -> Finding:
    """Name the system; any system except Linux is broken."""
    inside = [name for path, name in _CONTAINERS.items() if Path(path).exists()]
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, Python "
    found += platform.python_version()
    found += f", in a container ({inside[0]})" if inside else ""
    if platform.system() != "Linux":
        return fail(found, "use Linux: DALI and the locks of run folders need it")
    return good(found)


def check_cores(target: Target) -> Finding:
    """Compare the cores that this process may use with the GPUs, and with the cgroup's limit."""
    cores = len(os.sched_getaffinity(0))
    quota = read_cpu_limit()
    sharers = _count_sharers(target)
    each = min(cores, quota or cores) / sharers
    unit = "GPU" if target.gpus else "process"
    found = f"{cores} of {os.cpu_count()} cores usable, {each:g} a {unit}"
    faults = []
    if quota and quota < cores:
        threads = max(1, int(quota / sharers))
        limit = f"the cgroup allows the time of {quota:g}"
        faults.append((limit, f"give the container more, or set --num-workers {threads}"))
    if target.gpus and each < _FEW_CORES:
        few = f"the loader has fewer than {_FEW_CORES} cores a GPU"
        faults.append((few, "ask for more cores (docker --cpus, sbatch --cpus-per-task)"))
    return warn_of(found, faults)


def _count_sharers(target: Target) -> int:
    """Return the number of processes that train on this machine: those of the launcher, or one for
    each GPU."""
    return max(1, target.gpus) if is_alone() else count_local_ranks()


def read_cpu_limit() -> float | None:
    """Return the CPU time that the cgroup allows, in cores; None: no limit is known."""
    words = _read(CGROUPS / "cpu.max").split()
    if len(words) < 2:
        legacy = CGROUPS / "cpu"
        words = [_read(legacy / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = map(float, words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def check_memory(target: Target) -> Finding:
    """Compare the free memory, and the cgroup's limit, with the needs of all processes."""
    memory = psutil.virtual_memory()
    limit = read_memory_limit()
    free = min(memory.available, limit) if limit else memory.available
    sharers = _count_sharers(target)
    found = f"{memory.total / GIB:.0f} GiB, {memory.available / GIB:.0f} GiB free"
    if limit and limit < memory.total:
        found += f", the cgroup allows {limit / GIB:.1f} GiB"
    if free < sharers * _LEAST_MEMORY:
        need = f"{sharers * _LEAST_MEMORY / GIB:.0f} GiB for {sharers} processes"
        return warn(found, f"have {need} free (docker --memory, sbatch --mem)")
    return good(found)


def read_memory_limit() -> int | None:
    """Return the bytes that the cgroup allows; None: no limit is known."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(CGROUPS / name)
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text)
    return None


def check_shared_memory(target: Target) -> Finding:
    """Check /dev/shm, which NCCL uses between GPUs, and Python between processes."""
    cure = "docker run --shm-size=8g"
    if not SHARED_MEMORY.is_dir():
        return warn(f"no {SHARED_MEMORY}", f"mount a tmpfs there ({cure})")
    if not os.access(SHARED_MEMORY, os.W_OK):
        return warn(f"{SHARED_MEMORY} cannot be written", f"chmod 1777 {SHARED_MEMORY}")
    space = os.statvfs(SHARED_MEMORY)
    size = space.f_frsize * space.f_blocks
    found = (
        f"{SHARED_MEMORY}: {size / MIB:,.0f} MiB, {space.f_frsize * space.f_bavail / MIB:,.0f} free"
    )
    if target.gpus > 1 and size < GIB:
        return warn(f"{found}; NCCL may need 1 GiB between {target.gpus} GPUs", cure)
    return good(found)


def check_open_files(target: Target) -> Finding:
    """Check the number of files that a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_name_limit(soft)}, up to {_name_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        return warn(found, f"ulimit -n {_OPEN_FILES} (docker --ulimit nofile={_OPEN_FILES})")
    return good(found)


def _name_limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def check_clock(target: Target) -> Finding:
    """Compare the clock with the time at which this program was installed."""
    installed = Path(__file__).stat().st_mtime
    now = datetime.datetime.now(datetime.timezone.utc)
    found = f"{now:%F %T} UTC"
    if time.time() < installed - 60:
        behind = f"{found}, before this program was installed"
        return warn(behind, "set the clock (ntp): logs and indexes compare times of files")
    return good(found)


def check_encoding(target: Target) -> Finding:
    """Check the encodings of file names and of output."""
    files = sys.getfilesystemencoding()
    text = locale.getpreferredencoding(False)
    found = f"file names {files}, text {text}"
    if {files.lower(), text.lower().replace("utf8", "utf-8")} != {"utf-8"}:
        return warn(found, "export LC_ALL=C.UTF-8")
    return good(found)


def check_caches(target: Target) -> Finding:
    """Check whether the cache folders of libraries can be written."""
    places = _list_caches()
    closed = [(name, place) for name, place in places.items() if not _can_write(place)]
    faults = [
        (f"{place} cannot be written", f"set {name} to a folder that can be")
        for name, place in closed
    ]
    open_ones = ", ".join(
        str(place) for name, place in places.items() if (name, place) not in closed
    )
    return warn_of(open_ones, faults)


def _list_caches() -> dict[str, Path]:
    """Return the folders of the Hub's weights, Triton's and numba's compiled code, and the indexes
    of data sets, by the environment variable that names another folder."""
    user = find_user_cache()
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or user / "huggingface"
    return {
        "HF_HOME": Path(hub),
        "TRITON_CACHE_DIR": Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton"),
        "XDG_CACHE_HOME": user,
    }


def _can_write(place: Path) -> bool:
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
