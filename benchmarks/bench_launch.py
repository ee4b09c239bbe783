"""The launcher's time: from the command to the first step on 8, 64 and 256 ranks, by a model.

python -m benchmarks.bench_launch [-o FILE]

Measured on this machine's CPU, in CPU time, as its cores are shared:

  launcher   DeepSpeed's runner and launch.py around an empty script
  imports    a rank's imports; the files that they open and the bytes that they read
  torch      python -c "import torch", by which the first two are divided
  roll call  fastdeit/distributed/roll_call.py with 8, 64 and 256 ranks, which are threads here,
             each with its own connection: the cost of a message for the one store
  group      a gloo group of 2 and of 16 light processes: joining, a vote, a gathering of objects
  start      the collectives and groups of a run of `digits_teacher` up to its first step

The model (benchmarks/launch/model.py) adds the work of one machine, which all do at the same time,
that of the one store of rank 0 for every rank, and that of the shared file system for every
machine; its `Site` has the parameters that cannot be measured here. It does not include the index
of the images, NCCL's own start and the compilation of kernels: these do not depend on this code, or
not on the number of ranks.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.launch.groups import free_port, measure_group, measure_roll_call
from benchmarks.launch.model import Costs, Site, estimate
from benchmarks.measuring import harness

ESTIMATED = (8, 64, 256)
GROUPS = (2, 16)
ROUNDS = 3
IMPORTS = """
import json, os, sys, time
opened = set()
sys.addaudithook(lambda event, words: opened.add(words[0]) if event == "open" else None)
from fastdeit.commands.imports import pause_collection
with pause_collection():
    import fastdeit.commands.runs.train, fastdeit.library.execution
    from fastdeit.distributed.world import import_deepspeed
    import_deepspeed()
fields = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
print(json.dumps([time.process_time(), len(opened), int(fields["rchar"]) / 1e6]))
"""


def run_alone(*words: str) -> tuple[float, str]:
    """Run Python; return its CPU seconds with those of its children, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    kept = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=os.environ | kept, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, done.stdout


def measure_launcher() -> float:
    """Return the CPU seconds of DeepSpeed's launcher around an empty script."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "empty.py"
        script.touch()
        launcher = ("-m", "deepspeed.launcher.runner", "-q", "--no_local_rank")
        one = ("--num_accelerators", "1", "--master_port", str(free_port()))
        return run_alone(*launcher, *one, str(script))[0]


def print_calls(folder: Path) -> None:
    """Start a run, and print the calls of torch.distributed up to its first step as JSON."""
    from fastdeit.commands.runs.train import train_command
    from fastdeit.training.trainer import Trainer

    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def counted(*words: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*words, **options)

        return counted

    def end(*_: Any) -> None:
        print(json.dumps(calls), flush=True)
        os._exit(0)

    for name in ("all_gather_object", "broadcast_object_list", "all_reduce", "new_group"):
        setattr(dist, name, count(name))
    Trainer.train_step = end  # type: ignore[assignment,method-assign]
    folders = ["--data-path", str(folder / "digits"), "--output-dir", str(folder / "run")]
    train_command(["--recipe", "digits_teacher", *folders])


def measure_start() -> dict[str, int]:
    """Return the number of calls of torch.distributed up to the first step, by name."""
    with tempfile.TemporaryDirectory() as name:
        printed = run_alone("-m", "benchmarks.bench_launch", "--of", name)[1]
    return dict(json.loads(printed.splitlines()[-1]))


def measure() -> Costs:
    """Measure everything, return the costs of the model, and print the other values."""
    imports, files, read_mb = min(json.loads(run_alone("-c", IMPORTS)[1]) for _ in range(ROUNDS))
    messages = {ranks: measure_roll_call(ranks) for ranks in ESTIMATED}
    fewest, most = GROUPS
    groups = {ranks: measure_group(ranks) for ranks in GROUPS}
    slopes = [(high - low) / (most - fewest) for low, high in zip(*groups.values(), strict=True)]
    calls = measure_start()
    print("calls up to the first step:", calls)
    print("CPU us of the store for a message:", messages)
    print("CPU s of joining, a vote, a gathering:", groups)
    return Costs(
        torch_s=smallest(lambda: run_alone("-c", "import torch")[0]),
        launcher_s=smallest(measure_launcher),
        imports_s=imports,
        files=files,
        read_mb=read_mb,
        message_us=messages[ESTIMATED[-1]],
        peer_us=1e6 * slopes[0],
        gather_us=1e6 * slopes[2],
        vote_us=1e6 * groups[most][1],
        gathers=calls["all_gather_object"] + calls["broadcast_object_list"],
        votes=calls["all_reduce"],
    )


def smallest(run: Callable[[], float]) -> float:
    """Return the least of some measurements, as other work of the machine increases CPU time."""
    return min(run() for _ in range(ROUNDS))


COLUMNS = ("what", "part", "ranks", "value")


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-launch.csv")
    parser.add_argument("--of", type=Path, help="count the calls of a start; used by the process")
    args = parser.parse_args()
    if args.of:
        print_calls(args.of)
        return
    costs = measure()
    site = Site()
    stamp = harness.environment(torch.device("cpu"))
    rows: list[harness.Row] = []
    for what, values in (("measured", asdict(costs)), ("parameter", asdict(site))):
        rows += [{"what": what, "part": part, "value": value} for part, value in values.items()]
    for ranks in ESTIMATED:
        for part, seconds in estimate(ranks, costs, site).items():
            rows.append({"what": "estimate", "part": part, "ranks": ranks, "value": seconds})
    for row in rows:
        row["value"] = f"{row['value']:.4g}"
        print("  ".join(f"{row[name]}" for name in COLUMNS if name in row))
    harness.write_rows(args.output, [stamp | row for row in rows], [*stamp, *COLUMNS])


if __name__ == "__main__":
    main()
