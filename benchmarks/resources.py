"""Registers, shared memory and instructions of every kernel and configuration, compiled for a GPU
that is not there.

python -m benchmarks.resources [--arch 90 80] [--only mix attention] [--write | --check]

Each bench_<op>.py lists `LAUNCHES`: calls of the op's own launchers on small CPU tensors. Here they
run under a driver that compiles and never launches, so that Triton specialises the arguments as it
would on the GPU; the machine code is then read back with the disassembler of Triton's wheel.
--write puts the table into results/sm<arch>-resources.csv; --check fails when a kernel has got
worse than it says there, and is part of the tests (tests/kernels/test_resources.py).
"""

import argparse
import csv
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.harness import RESULTS, Launch, Row
from fastdeit.kernels import launch_configs

OPS = ("attention", "norm", "gelu", "mix", "distill", "augment")
KEYS = ("launch", "kernel", "constants")
COUNTS = (
    "registers",
    "stack",
    "shared",
    "warps",
    "ctas_per_sm",
    "wgmma",
    "mma",
    "loads",
    "loads_128",
    "stores",
    "stores_128",
)
COLUMNS = ("triton", *KEYS, *COUNTS)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a CTA can have."""
_SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class OfflineDriver:
    """Stands where Triton looks for a GPU; a device's number is its architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def compiled_only(arch: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Within, launches of kernels compile for sm_<arch> and do nothing else; yields what was
    compiled.

    For a process of its own: Triton keeps the driver that it was given.
    """
    found: list[tuple[Any, dict[str, Any]]] = []
    run, launch_arch = JITFunction.run, launch_configs.arch

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        constants = {name: value for name, value in kwargs.items() if name.isupper()}
        found.append((kernel, constants))
        return kernel

    JITFunction.run, launch_configs.arch = compile_only, lambda device: arch
    driver.set_active(OfflineDriver(arch))
    try:
        yield found
    finally:
        JITFunction.run, launch_configs.arch = run, launch_arch


def _dump(kernel: Any, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ctas_per_sm(registers: int, warps: int, shared: int, arch: int) -> int:
    """How many CTAs fit on one SM: 64 K registers given out in steps of 256 a warp, 1 KiB of shared
    memory kept back each."""
    per_warp = -(-registers * 32 // 256) * 256
    return min(
        65536 // (per_warp * warps), _SHARED_PER_SM[arch] // (shared + 1024), 64 // warps, 32
    )


def measure(kernel: Any, arch: int) -> Row:
    """The columns of `COUNTS` for one compiled kernel."""
    usage, code = _dump(kernel, "-res-usage"), _dump(kernel, "-sass")
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", code))

    return {
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "warps": warps,
        "ctas_per_sm": _ctas_per_sm(registers, warps, shared, arch),
        "wgmma": count("HGMMA"),
        "mma": count("HMMA"),
        "loads": count("LDG") + count("LDGSTS"),
        "loads_128": count(r"LDG\S*\.128") + count(r"LDGSTS\S*\.128"),
        "stores": count("STG"),
        "stores_128": count(r"STG\S*\.128"),
    }


def compile_launch(launch: Launch, arch: int) -> list[Row]:
    """One row for each different kernel that the launch runs."""
    with compiled_only(arch) as found:
        launch.run()
    rows: dict[tuple[str, str], Row] = {}
    for kernel, constants in found:
        spelled = " ".join(
            f"{name}={int(value) if isinstance(value, bool) else value}"
            for name, value in constants.items()
        )
        key = (kernel.metadata.name, spelled)
        if key not in rows:
            what: Row = {
                "triton": triton.__version__,
                "launch": launch.name,
                "kernel": key[0],
                "constants": key[1],
            }
            rows[key] = what | measure(kernel, arch)
    return list(rows.values())


def launches(ops: tuple[str, ...] = OPS) -> list[Launch]:
    """What the benchmarks of these ops list."""
    return [
        launch
        for op in ops
        for launch in importlib.import_module(f"benchmarks.bench_{op}").LAUNCHES
    ]


def problems(launch: Launch, row: Row, arch: int) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    found = []
    if row["stack"]:
        found.append(f"{row['stack']} bytes of stack: registers are spilled")
    if int(row["shared"]) > SHARED_LIMIT[arch]:
        found.append(f"{row['shared']} bytes of shared memory of {SHARED_LIMIT[arch]}")
    if int(row["ctas_per_sm"]) < 1:
        found.append("no CTA fits on an SM")
    if arch == 90 and row["kernel"] in launch.wgmma and (row["mma"] or not row["wgmma"]):
        found.append(
            f"{row['wgmma']} wgmma and {row['mma']} mma instructions: every product must be wgmma"
        )
    if row["kernel"] in launch.streams and not (row["loads_128"] and row["stores_128"]):
        found.append("no 128-bit loads or stores in a kernel that only moves memory")
    return found


def worsened(row: Row, before: dict[str, str]) -> list[str]:
    """What a kernel takes more of, or has less of, than in the checked-in table, in words."""
    more = [name for name in ("registers", "shared", "mma") if int(row[name]) > int(before[name])]
    less = [
        name
        for name in ("ctas_per_sm", "loads_128", "stores_128", "wgmma")
        if int(row[name]) < int(before[name])
    ]
    # fewer wide accesses are no loss where there are fewer of all
    less = [
        name
        for name in less
        if not name.endswith("_128") or _narrow(row, name) > _narrow(before, name)
    ]
    return [f"{name}: {before[name]} before, now {row[name]}" for name in more + less]


def _narrow(row: Mapping[str, Any], name: str) -> int:
    return int(row[name.removesuffix("_128")]) - int(row[name])


def table(arch: int) -> Path:
    return RESULTS / f"sm{arch}-resources.csv"


def read(arch: int) -> dict[tuple[str, ...], dict[str, str]]:
    """The checked-in rows of this Triton by their keys; none if they are of another version, whose
    code is another."""
    with table(arch).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["triton"] == triton.__version__]
    return {tuple(row[name] for name in KEYS): row for row in rows}


def heaviest(arch: int) -> set[str]:
    """Return the launches in which a kernel of the checked-in table takes the most registers."""
    with table(arch).open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["registers"]))
    return set({row["kernel"]: row["launch"] for row in rows}.values())


def write(rows: list[Row], arch: int) -> None:
    with table(arch).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def compare(row: Row, before: dict[tuple[str, ...], dict[str, str]]) -> list[str]:
    """`worsened` against the table, which must know the kernel."""
    if not before:
        return []
    key = tuple(str(row[name]) for name in KEYS)
    return (
        worsened(row, before[key])
        if key in before
        else ["not in the table: python -m benchmarks.resources --write"]
    )


def compile_all(
    chosen: list[Launch], arch: int, before: dict[tuple[str, ...], dict[str, str]]
) -> tuple[list[Row], int]:
    """Compile and print; returns the rows and how many problems were found."""
    rows: list[Row] = []
    count = 0
    for launch in chosen:
        for row in compile_launch(launch, arch):
            rows.append(row)
            print(
                f"sm_{arch}",
                *(f"{row[name]}" for name in KEYS),
                *(f"{name}={row[name]}" for name in COUNTS),
                flush=True,
            )
            found = problems(launch, row, arch) + compare(row, before)
            count += len(found)
            for problem in found:
                print(f"  PROBLEM: {problem}")
    return rows, count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=SHARED_LIMIT)
    parser.add_argument("--only", nargs="+", default=OPS, choices=OPS, help="ops")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--write", action="store_true", help="renew the checked-in table (with all ops)"
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="fail where a kernel is worse than in the checked-in table",
    )
    parser.add_argument(
        "--heaviest",
        action="store_true",
        help="only the launch of each kernel that takes the most registers",
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.heaviest:
        parser.error("--write must be used without --heaviest: it writes the whole table")
    total = 0
    for arch in arguments.arch:
        chosen = launches(tuple(arguments.only))
        if arguments.heaviest:
            chosen = [launch for launch in chosen if launch.name in heaviest(arch)]
        rows, count = compile_all(chosen, arch, read(arch) if arguments.check else {})
        total += count
        if arguments.write:
            write(rows, arch)
    sys.exit(f"{total} problems" if total else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
