"""Search of the fastest launches on this machine's GPU, written to kernels/launch_configs.json.

python -m benchmarks.tune [--only attention norm] [--seconds 300]

Each workload is a call of an op at DeiT's sizes. In the rows of the table that the call reads, one
number at a time is halved or doubled (warps, blocks, programs; also a block together with the
warps) or changed by one (stages). A change is stored if the call is 2 % faster and its result is
the same. If the op has several forms, each is tried with its own launches, improved in the same
way, and stored under the same condition. The new rows have the running version of Triton; those of
other versions are not changed. An architecture without rows starts with copies of those that it
uses.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
import triton

from benchmarks.measuring.harness import make_parser, quantiles_ms
from benchmarks.measuring.workloads import WORKLOADS, Call
from fastdeit.kernels import launch_configs

KEYS = ("op", "arch", "bits", "D", "N")
NAMES = (*KEYS, "triton", "form", "launch")
TRITON = ".".join(map(str, launch_configs.TRITON))
FAILURES = (
    AssertionError,
    LookupError,
    RuntimeError,
    ValueError,
    triton.CompilationError,
    triton.OutOfResources,
)
"""The errors of a launch that is wrong or that the GPU or the form cannot run."""
GAIN = 0.98
"""The largest share of the earlier time at which a change is stored."""
Row = dict[str, Any]


def rows_of(call: Call) -> list[Row]:
    """Return the rows of the table that a call reads, also if the call fails."""
    read: list[Row] = []
    find = launch_configs._find_row

    def watched(*key: Any) -> Row:
        row = find(*key)
        if row not in read:
            read.append(row)
        return row

    launch_configs._find_row = watched  # type: ignore[assignment]
    try:
        with contextlib.suppress(*FAILURES):
            call()
    finally:
        launch_configs._find_row = find
    return read


def adopt(arch: int) -> None:
    """Add rows of this architecture for every op, as copies of those that it uses."""
    rows = launch_configs.rows()
    for op, bits in {(row["op"], row["bits"]) for row in rows}:
        usable = [row for row in rows if (row["op"], row["bits"]) == (op, bits)]
        usable = [row for row in usable if row["arch"] <= arch]
        newest = max((row["arch"] for row in usable), default=arch)
        for row in usable:
            if row["arch"] == newest < arch:
                rows.append(copy.deepcopy(row) | {"arch": arch})
    launch_configs._find_row.cache_clear()


def own(row: Row) -> Row:
    """Return the row for the running Triton alone: the row itself, or a copy that is added to the
    table."""
    if row.get("triton") == TRITON:
        return row
    copied = copy.deepcopy(row) | {"triton": TRITON}
    launch_configs.rows().append(copied)
    launch_configs._find_row.cache_clear()
    return copied


def neighbours(launch: launch_configs.Launch) -> Iterator[launch_configs.Launch]:
    """Yield the launches that differ in one number, or in a block and the warps alike."""
    limits = {"num_warps": 32, "num_stages": 8}
    for name, value in launch.items():
        near = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        limit = limits.get(name, 1 << 16)
        yield from (launch | {name: other} for other in near if 1 <= other <= limit)
    for name, value in launch.items():
        warps = launch["num_warps"]
        if name.startswith("BLOCK") and 1 < warps < 32 and value > 1:
            yield launch | {name: value // 2, "num_warps": warps // 2}
            yield launch | {name: value * 2, "num_warps": warps * 2}


def time_of(call: Call, expected: list[torch.Tensor] | None = None) -> float:
    """Return the milliseconds of a call; infinity for a launch that fails or is wrong."""
    try:
        found = call()
        torch.cuda.synchronize()
        for actual, wanted in zip(found, expected or found, strict=True):
            largest = max(1.0, wanted.abs().max().item())
            torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2 * largest)
        return quantiles_ms(call, torch.device("cuda"), repeat_ms=60)[1]
    except FAILURES:
        return float("inf")


def improve(row: Row, call: Call, expected: list[torch.Tensor], deadline: float) -> float:
    """Change the row's launch to a faster neighbour until there is none, or until the deadline (of
    time.monotonic); return the milliseconds of the call."""
    row = own(row)
    best = time_of(call, expected)
    improved = True
    while improved and time.monotonic() < deadline:
        start = dict(row["launch"])
        improved = False
        for other in neighbours(start):
            row["launch"].update(other)
            taken = time_of(call, expected)
            if taken < GAIN * best:
                print(f"    {best:.4f} -> {taken:.4f} ms  {other}", flush=True)
                best = taken
                improved = True
                break
            row["launch"].update(start)
    return best


def choose_form(row: Row, call: Call, expected: list[torch.Tensor], deadline: float) -> None:
    """Set the row's form to the fastest whose results are as expected; try nothing more after the
    deadline.

    Every form is timed with the launches of the table, then the launches are improved, those of the
    fastest form first.
    """
    row = own(row)
    before = row["form"]
    taken = {before: time_of(call, expected)}
    for form in launch_configs.FORMS[row["op"]]:
        if form != before and time.monotonic() < deadline:
            row["form"] = form
            taken[form] = time_of(call, expected)
    for form in sorted(taken, key=lambda form: taken[form]):
        row["form"] = form
        taken[form] = improve_launches(call, expected, deadline)
        print(f"  form {form}: {taken[form]:.4f} ms", flush=True)
    best = min(taken, key=lambda form: taken[form])
    row["form"] = best if taken[best] < GAIN * taken[before] else before


def improve_launches(call: Call, expected: list[torch.Tensor], deadline: float) -> float:
    """Improve every launch that the call reads; return the milliseconds of the call."""
    taken = float("inf")
    for row in rows_of(call):
        if "launch" in row:
            taken = improve(row, call, expected, deadline)
    return taken


def tune(call: Call, deadline: float) -> None:
    """Choose forms and launches of a call; those of the table so far give the right results."""
    expected = [tensor.clone() for tensor in call()]
    with_forms = [row for row in rows_of(call) if "form" in row]
    for row in with_forms:
        choose_form(row, call, expected, deadline)
    if not with_forms:
        improve_launches(call, expected, deadline)


def _is_repeat(row: Row) -> bool:
    """Return True if an older version of Triton has the same row."""
    older = [
        other
        for other in launch_configs.rows()
        if all(other[key] == row[key] for key in KEYS)
        and launch_configs.version_of_row(other) < launch_configs.version_of_row(row)
    ]
    newest = max(older, key=launch_configs.version_of_row, default=row)
    return newest | {"triton": None} == row | {"triton": None} and newest is not row


def write() -> None:
    """Write the table, one row a line."""
    kept = [row for row in launch_configs.rows() if not _is_repeat(row)]
    kept.sort(key=lambda row: ([row[key] for key in KEYS], launch_configs.version_of_row(row)))
    ordered = [{name: row[name] for name in NAMES if name in row} for row in kept]
    lines = ",\n".join(map(json.dumps, ordered))
    launch_configs.TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="ops")
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="time for all calls, each of which has an equal share of what is left",
    )
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    adopt(launch_configs.arch(torch.device("cuda")))
    jobs = [(f"{op} {name}", call) for op in args.only for name, call in WORKLOADS[op]()]
    for done, (name, call) in enumerate(jobs):
        left = end - time.monotonic()
        if left < 0:
            print(f"skipped, no time: {name}")
            continue
        print(name, flush=True)
        tune(call, time.monotonic() + left / (len(jobs) - done))
        write()


if __name__ == "__main__":
    main()
