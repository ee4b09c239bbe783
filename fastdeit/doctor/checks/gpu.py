"""Checks of the GPUs: the driver, and the builds of torch and DALI for it."""

import csv
import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from fastdeit.doctor.findings import Finding, Target, absent, fail, good, warn, warn_of

_QUERY = ("name", "driver_version", "memory.total", "compute_cap")
_DRIVER = Path("/proc/driver/nvidia/version")
_DEVICES = "/dev"
_BF16_FROM = (8, 0)
_QUERY_S = 15


def count_gpus() -> int:
    """Return the number of GPUs that the driver lists; 0 without a driver."""
    try:
        return len(_query())
    except (OSError, subprocess.SubprocessError):
        return 0


def show_one_gpu(number: int, gpus: int) -> dict[str, str]:
    """Return the environment variable with which a process sees one GPU alone: number `number` of
    those that this process may use; none if there is no such GPU. gpus: the number of GPUs in the
    machine."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = list(map(str, range(gpus))) if chosen is None else chosen.split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number]} if number < len(visible) else {}


def _query() -> list[list[str]]:
    """Return a row for each GPU that nvidia-smi lists. Raises OSError and SubprocessError."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = process.communicate(timeout=_QUERY_S)
    except subprocess.TimeoutExpired:
        process.kill()  # without a wait: a process that hangs in the driver does not end
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text)
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]


def check_driver(target: Target) -> Finding:
    """Check the driver, and the GPUs that it lists."""
    devices = [name for name in _list_devices() if re.fullmatch(r"nvidia\d+", name)]
    if not shutil.which("nvidia-smi"):
        if not devices and not _DRIVER.exists():
            return absent("no GPU, no driver")
        found = f"{len(devices)} GPUs, but no nvidia-smi"
        cure = "start the container with the driver's tools (docker run --gpus all)"
        return warn(found, cure)
    try:
        rows = _query()
    except subprocess.CalledProcessError as error:
        message = " ".join(error.output.split())[:200]
        return fail(f"nvidia-smi: {message}", "install the driver that fits the kernel, or reboot")
    except subprocess.TimeoutExpired:
        return fail(f"nvidia-smi gives no answer in {_QUERY_S} s", "reboot: the driver hangs")
    return _describe(rows)


def _list_devices() -> list[str]:
    try:
        return os.listdir(_DEVICES)
    except OSError:
        return []


def _describe(rows: list[list[str]]) -> Finding:
    if not rows:
        return fail("nvidia-smi lists no GPU", "start the container with --gpus all")
    name, driver, memory, capability = rows[0]
    found = f"{len(rows)} x {name}, {memory}, compute capability {capability}, driver {driver}"
    kinds = {row[0] for row in rows}
    if len(kinds) > 1:
        mixed = f"{found}; GPUs of several kinds: {', '.join(sorted(kinds))}"
        return warn(mixed, "choose one kind with CUDA_VISIBLE_DEVICES: the slowest sets the pace")
    return good(found)


def check_cuda(target: Target) -> Finding:
    """Compare torch's build of CUDA with the driver and with the GPUs."""
    import torch

    built = torch.version.cuda
    if not target.gpus:
        kind = f"CUDA {built}" if built else "CPU"
        return absent(f"no GPU; torch {torch.__version__} is a build for {kind}")
    if not built:
        found = f"torch {torch.__version__} is a build for the CPU, on a machine with a GPU"
        return fail(found, "install torch for CUDA (pytorch.org/get-started)")
    if not torch.cuda.is_available():
        return _explain_unavailable(built)
    return _check_capability(built)


def _explain_unavailable(built: str) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        found = f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs"
        return warn(found, "unset CUDA_VISIBLE_DEVICES")
    driver = "{}.{}".format(*read_driver_cuda())
    found = f"torch sees no GPU: it needs CUDA {built}, the driver has {driver}"
    return fail(found, f"update the driver to one of CUDA {built.split('.')[0]} or later")


def read_driver_cuda() -> tuple[int, int]:
    """Return the newest version of CUDA that the driver supports, as (13, 0); (0, 0) without a
    driver."""
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return 0, 0
    return number.value // 1000, number.value % 1000 // 10


def _check_capability(built: str) -> Finding:
    import torch

    major, minor = torch.cuda.get_device_capability()
    driver = "{}.{}".format(*read_driver_cuda())
    found = f"CUDA {built} in torch, {driver} in the driver, sm_{major}{minor}"
    found += f", cuDNN {torch.backends.cudnn.version()}"
    known = [name for name in torch.cuda.get_arch_list() if name.startswith(f"sm_{major}")]
    if not known:
        return fail(f"{found}; torch has no code for it", "install a torch built for this GPU")
    if (major, minor) < _BF16_FROM:
        return warn(f"{found}; no bf16 in hardware", "use --precision fp32, or a newer GPU")
    return good(found)


def check_dali(target: Target) -> Finding:
    """Compare DALI's build of CUDA with the driver's; look for its libraries."""
    builds = _list_dalis()
    found = ", ".join(f"{name} {version}" for name, version in builds.items()) or "no DALI"
    if not builds:
        return fail(found, "pip install nvidia-dali-cuda120")
    faults = []
    if len(builds) > 1:
        first = next(iter(builds))
        faults.append(("two builds overwrite each other", f"uninstall all, install {first}"))
    needed = int(next(iter(builds)).removeprefix("nvidia-dali-cuda")[:2] or 0)
    driver, _ = read_driver_cuda()
    if target.gpus and driver and needed > driver:
        old = f"the driver has CUDA {driver}"
        faults.append((old, f"update the driver, or install nvidia-dali-cuda{driver}0"))
    missing = [name for name in ("nvidia-nvimgcodec", "nvidia-nvjpeg") if not _has_any(name)]
    if missing:
        faults.append(
            (
                f"no {' and no '.join(missing)}",
                f"pip install --force-reinstall {next(iter(builds))}",
            )
        )
    return warn_of(found, faults)


def _list_dalis() -> dict[str, str]:
    """Return the installed builds of DALI, by name."""
    return {name: version for name, version in _installed() if name.startswith("nvidia-dali-cuda")}


def _has_any(prefix: str) -> bool:
    return any(name.startswith(prefix) for name, _ in _installed())


def _installed() -> list[tuple[str, str]]:
    found = importlib.metadata.distributions()
    named = {(one.metadata["Name"].lower(), one.version) for one in found if "Name" in one.metadata}
    return sorted(named)
