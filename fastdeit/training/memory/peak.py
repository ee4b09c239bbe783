"""The peak memory of this process, for the log of a run."""

from pathlib import Path

import torch

_GB = 1e9


def read_peak_memory(device: torch.device) -> dict[str, float]:
    """Return `memory_gb`, the peak so far in 10^9 bytes: of tensors on a GPU, of the process's
    resident set on a CPU. Empty where the system does not report it. Waits for no device."""
    if device.type == "cuda":
        return {"memory_gb": round(torch.cuda.max_memory_allocated(device) / _GB, 3)}
    peak = _read_resident_peak()
    return {} if peak is None else {"memory_gb": round(peak / _GB, 3)}


def _read_resident_peak(status: Path = Path("/proc/self/status")) -> int | None:
    """Return the peak of the resident set in bytes; None if it is not known. Not by getrusage,
    whose peak includes what the parent had when it forked."""
    try:
        _, found, rest = status.read_text(errors="replace").partition("VmHWM:")
    except OSError:
        return None
    return int(rest.split()[0]) * 1024 if found else None
