"""Launch configurations of all kernels: block sizes, warps and stages, from launch_configs.json.

A row has the op, the architecture (90 for sm_90), the bits of an element, the sizes D and N that it
was chosen for (0: any; N of norm_bwd is its number of sums over rows) and the launch: the kernel's
BLOCK_* constants, num_warps, num_stages. A row with "triton": "3.9" is for that version of Triton
and newer ones, which may need other blocks than an older one to fit the registers.

An op that can run in several forms, such as attention_bwd, has rows with the name of a form in
place of a launch; the launches of the form "pair" have ops of their own. Nothing is tuned when a
run starts; `benchmarks/tune.py` refreshes the table on a GPU, and `benchmarks/resources.py`
compiles every form and launch without one.
"""

import functools
import json
from pathlib import Path

import torch
import triton

TABLE = Path(__file__).with_name("launch_configs.json")
"""The file with the table of launches."""
INTERPRETED_ARCH = 90
"""The architecture whose launches Triton's interpreter uses."""
FORMS = {
    "attention_bwd": ("pair", "whole", "ahead"),
    "attention_fwd": ("blocks", "resident"),
    "mlp_bwd": ("separate", "epilogue"),
    "mlp_fwd": ("separate", "epilogue"),
}
"""The ops that have several forms, with the names of the forms."""
Version = tuple[int, int]
"""Major and minor version of Triton."""
Launch = dict[str, int]
"""The constants and options of a launch, by name."""


@functools.lru_cache(maxsize=1)
def rows() -> list[dict]:
    """Return the rows of the table; the list is shared, and code that changes it must clear the
    cache of `_find_row`."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def arch(device: torch.device) -> int:
    """Return the device's architecture as a number, 90 for an H100; also for Triton's interpreter
    on a CPU."""
    if device.type != "cuda":
        return INTERPRETED_ARCH
    return _arch_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _arch_of(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def version_of(name: str) -> Version:
    """Return (3, 9) for "3.9", "3.9.0" or "3.9.0+git1234"."""
    major, minor, *_ = name.split(".")
    return int(major), int(minor)


TRITON = version_of(triton.__version__)
"""The version of the installed Triton."""


def find_launch(op: str, device: torch.device, *, bits: int = 16, D: int = 0, N: int = 0) -> Launch:
    """Return the launch of an op's kernel, as keyword arguments; a copy.

    It is that of the newest architecture not newer than the device's, then of the smallest D and N
    that are at least those given (the largest ones if none is). Of rows that differ only in the
    version of Triton, it is the newest that is not newer than the installed one. Raises LookupError
    for an op without a row for these bits.
    """
    return dict(_find_row(op, arch(device), bits, D, N)["launch"])


def find_form(op: str, device: torch.device, *, bits: int = 16, D: int = 0, N: int = 0) -> str:
    """Return the name of the form, one of `FORMS[op]`, in the row that `find_launch` would
    choose."""
    return _find_row(op, arch(device), bits, D, N)["form"]


@functools.cache
def _find_row(op: str, arch: int, bits: int, D: int, N: int) -> dict:
    fitting = [row for row in _supported_rows(op, bits) if row["arch"] <= arch]
    if not fitting:
        raise LookupError(f"no launch of {op} for {bits} bits on sm_{arch} in {TABLE}")
    for key, wanted in (("arch", arch), ("D", D), ("N", N)):
        fitting = _nearest(fitting, key, wanted)
    return fitting[0]


def _supported_rows(op: str, bits: int) -> list[dict]:
    """Return the rows that the installed Triton takes: the newest of those for the same sizes."""
    newest: dict[tuple[int, ...], dict] = {}
    for row in sorted(rows(), key=version_of_row):
        if (row["op"], row["bits"]) == (op, bits) and version_of_row(row) <= TRITON:
            newest[row["arch"], row["D"], row["N"]] = row
    return list(newest.values())


def version_of_row(row: dict) -> Version:
    """Return the version of Triton from which on a row is used; (0, 0) if it names none."""
    return version_of(row.get("triton", "0.0"))


def _nearest(fitting: list[dict], key: str, wanted: int) -> list[dict]:
    """Return the rows with the smallest value that is at least `wanted`, else with the largest."""
    values = {row[key] for row in fitting}
    best = min((value for value in values if value >= wanted), default=max(values))
    return [row for row in fitting if row[key] == best]


# triton.cdiv and triton.next_power_of_2 also work inside kernels; on the host they take ten times
# as long as these
def blocks_of(size: int, block: int) -> int:
    """Return the number of blocks for `size` elements."""
    return -(-size // block)


def padded(size: int) -> int:
    """Return the smallest power of two that is at least size, which is at least 1."""
    return 1 << (size - 1).bit_length()
