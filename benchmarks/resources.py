"""Registers, shared memory and instructions of every kernel and launch, compiled without a GPU.

python -m benchmarks.resources [--arch 90 80] [--only mix attention] [--write | --check]

Each bench_<op>.py lists `LAUNCHES`: calls of the op's launchers on small CPU tensors. Here they run
with a driver that compiles and never launches, so that Triton specialises the arguments as on the
GPU; the disassembler of Triton's wheel then reads the machine code. --write writes the rows of the
installed Triton in the table results/sm<arch>-resources.csv; --check fails when a register is
spilled or a kernel is worse than in those rows, and is part of the tests
(tests/kernels/test_resources.py). For another Triton than the installed one:

pip install --no-deps --target FOLDER triton==3.9.0
PYTHONPATH=FOLDER python -m benchmarks.resources --check
"""

import csv
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.measuring.harness import RESULTS, Launch, Row, make_parser
from benchmarks.measuring.offline import compiled_only, measure
from fastdeit.kernels import launch_configs
from fastdeit.kernels.launch_configs import version_of

OPS = ("attention", "norm", "gelu", "mlp", "mix", "normalise", "distill", "augment", "resize")
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
"""The bytes of shared memory that a CTA can have, by architecture."""


def compile_launch(launch: Launch, arch: int) -> list[Row]:
    """Return one row for each different kernel that the launch runs."""
    with compiled_only(arch) as found:
        launch.run()
    rows: dict[tuple[str, str], Row] = {}
    for kernel, constants in found:
        name = kernel.metadata.name
        spelled = " ".join(f"{key}={_plain(value)}" for key, value in constants.items())
        if (name, spelled) not in rows:
            row: Row = {"triton": triton.__version__, "launch": launch.name}
            row |= {"kernel": name, "constants": spelled}
            rows[name, spelled] = row | measure(kernel, arch)
    return list(rows.values())


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def launches(ops: tuple[str, ...] = OPS) -> list[Launch]:
    """Return the launches that the benchmarks of these ops list."""
    found = []
    for op in ops:
        found += importlib.import_module(f"benchmarks.bench_{op}").LAUNCHES
    return found


def problems(launch: Launch, row: Row, arch: int) -> list[str]:
    """Return descriptions of the faults of a compiled kernel."""
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
    """Return descriptions of the columns that are worse than in the checked-in table."""
    worse = [name for name in ("registers", "shared", "mma") if int(row[name]) > int(before[name])]
    worse += [name for name in ("ctas_per_sm", "wgmma") if int(row[name]) < int(before[name])]
    for name in ("loads_128", "stores_128"):
        # fewer wide accesses are not worse if the number of narrow ones has not grown
        if int(row[name]) < int(before[name]) and _narrow(row, name) > _narrow(before, name):
            worse.append(name)
    return [f"{name}: {before[name]} before, now {row[name]}" for name in worse]


def _narrow(row: Mapping[str, Any], name: str) -> int:
    """Return the number of accesses that are not 128 bits wide."""
    return int(row[name.removesuffix("_128")]) - int(row[name])


def table(arch: int) -> Path:
    return RESULTS / f"sm{arch}-resources.csv"


def read_all(arch: int) -> list[dict[str, str]]:
    """Return the checked-in rows, of every version of Triton."""
    with table(arch).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(arch: int) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the checked-in rows of the installed version of Triton, by their keys."""
    rows = [row for row in read_all(arch) if row["triton"] == triton.__version__]
    return {tuple(row[name] for name in KEYS): row for row in rows}


def heaviest(arch: int) -> set[str]:
    """Return the launches in which a kernel of the checked-in table uses the most registers, with
    the installed Triton or, if the table does not have that, any version."""
    rows = list(read(arch).values()) or read_all(arch)
    rows.sort(key=lambda row: int(row["registers"]))
    return set({row["kernel"]: row["launch"] for row in rows}.values())


def write(rows: list[Row], arch: int) -> None:
    """Write the rows in place of those of the installed Triton; do not change other versions."""
    others = [row for row in read_all(arch) if row["triton"] != triton.__version__]
    older = [row for row in others if version_of(row["triton"]) < launch_configs.TRITON]
    newer = [row for row in others if row not in older]
    with table(arch).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*older, *rows, *newer])


def compare(row: Row, before: dict[tuple[str, ...], dict[str, str]]) -> list[str]:
    """Return the result of `worsened`, or that the kernel is missing from the table."""
    if not before:
        return []
    key = tuple(str(row[name]) for name in KEYS)
    if key not in before:
        return ["not in the table: python -m benchmarks.resources --write"]
    return worsened(row, before[key])


def compile_all(
    chosen: list[Launch], arch: int, before: dict[tuple[str, ...], dict[str, str]]
) -> tuple[list[Row], int]:
    """Compile the launches and print their rows; return the rows and the number of problems."""
    rows: list[Row] = []
    count = 0
    for launch in chosen:
        for row in compile_launch(launch, arch):
            rows.append(row)
            counts = [f"{name}={row[name]}" for name in COUNTS]
            print(f"sm_{arch}", *(row[name] for name in KEYS), *counts, flush=True)
            found = problems(launch, row, arch) + compare(row, before)
            count += len(found)
            for problem in found:
                print(f"  PROBLEM: {problem}")
    return rows, count


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=SHARED_LIMIT)
    parser.add_argument("--only", nargs="+", default=OPS, choices=OPS, help="ops")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write the tables, of all ops")
    action.add_argument(
        "--check", action="store_true", help="fail where a kernel is worse than in the table"
    )
    parser.add_argument(
        "--heaviest",
        action="store_true",
        help="only the launch of each kernel that takes the most registers",
    )
    args = parser.parse_args()
    if args.write and (args.heaviest or set(args.only) < set(OPS)):
        parser.error("--write must be used without --only and --heaviest: it writes whole tables")
    total = 0
    for arch in args.arch:
        chosen = [launch for launch in launches(tuple(args.only)) if launch.oldest <= arch]
        if args.heaviest:
            chosen = [launch for launch in chosen if launch.name in heaviest(arch)]
        before = read(arch) if args.check else {}
        rows, count = compile_all(chosen, arch, before)
        total += count
        if args.write:
            write(rows, arch)
    sys.exit(f"{total} problems" if total else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
