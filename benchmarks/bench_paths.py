"""Test of the fast paths of the step that are off until a GPU has shown that they are equal and
faster.

python -m benchmarks.bench_paths [--out FOLDER] [--seconds 90]

The step is trained with a path and without it, from the same weights, on the same 50 batches, which
differ in their masks, shares and labels. Columns:

  equal      whether the losses and gradient norms of all steps, and the weights after the last, are
             equal bit for bit
  faster_by  the time of a step without the path divided by that with it, both as in bench_engine

On a GPU the last line names the paths that may be switched on: equal at every size, and faster at
one. On a CPU, tapes (measuring/tape.py) replace CUDA graphs, and the time means nothing.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.bench_engine import IMPLEMENTATIONS, free_memory, record
from benchmarks.measuring import harness
from benchmarks.measuring.steps import step_times_ms
from benchmarks.measuring.trainers import CLASSES, make_batch, make_config, make_trainer
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed

STEPS = 50
PATHS = {"--cuda-graph auto": "ours, CUDA graphs"}
"""The row of bench_engine for each path, by its flag; the step without a path is "ours"."""
SIZES = {"cuda": [("small", 128), ("small", 256), ("small", 1024)], "cpu": [("toy", 4)]}


class Trained(NamedTuple):
    """The results of `STEPS` steps: statistics (STEPS, 4) and weights, on the CPU, and the
    milliseconds of a step."""

    statistics: torch.Tensor
    weights: dict[str, torch.Tensor]
    ms: float


def vary(batch: Batch, step: int) -> Batch:
    """Return a batch of the same shapes with other masks, shares and labels."""
    generator = torch.Generator().manual_seed(step)
    samples, depth, _ = batch.drop_path_mask.shape
    masks = torch.rand(samples, depth, 2, generator=generator) > 0.1
    lam = torch.rand(samples, generator=generator)
    device = batch.lam.device
    return dataclasses.replace(
        batch,
        labels=(batch.labels + step) % CLASSES,
        lam=lam.to(device),
        drop_path_mask=masks.to(device),
    )


def train(implementation: str, student: str, size: int, world: World) -> Trained:
    """Train `STEPS` steps of a student, as a row of bench_engine does; return the results."""
    impl = IMPLEMENTATIONS[implementation]
    config = make_config(student, size, **impl.changes)
    trainer = make_trainer(config, world)
    batch = make_batch(size, world.device, config.data.input_size)
    if impl.graphs:
        record(trainer, batch)
    rows = [trainer.train_step([vary(batch, step)]) for step in range(STEPS)]
    found = torch.stack(rows).cpu()
    weights = trainer.state.weights()
    times = step_times_ms(lambda: trainer.train_step([batch])[0], world.device)
    trainer.engine.destroy()
    return Trained(found, weights, statistics.median(times))


def is_equal(one: Trained, other: Trained) -> bool:
    """Return True if both results are equal bit for bit; NaN equals nothing."""
    return torch.equal(one.statistics, other.statistics) and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def compare(student: str, size: int, world: World) -> Iterator[harness.Row]:
    """Yield a row for each path at one size."""
    plain = train("ours", student, size, world)
    free_memory(world.device)
    for path, implementation in PATHS.items():
        fast = train(implementation, student, size, world)
        free_memory(world.device)
        yield {
            "path": path,
            "shape": f"{student} {size}",
            "equal": is_equal(plain, fast),
            "faster_by": float(f"{plain.ms / fast.ms:.3g}"),
        }


def list_shown(rows: list[harness.Row]) -> list[str]:
    """Return the paths that are equal in all of their rows, and faster in one."""
    equal = {path: [row["equal"] for row in rows if row["path"] == path] for path in PATHS}
    faster = {row["path"] for row in rows if float(row["faster_by"]) > 1}
    return [path for path in PATHS if equal[path] and all(equal[path]) and path in faster]


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--seconds", type=float, default=90, help="start no size after this time")
    args = parser.parse_args()
    world = init_distributed()
    start = time.monotonic()
    stamp = harness.environment(world.device)
    rows: list[harness.Row] = []
    for student, size in SIZES[world.device.type]:
        if time.monotonic() - start > args.seconds:
            print("skipped, no time:", student, size)
            continue
        for row in compare(student, size, world):
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            harness.write_rows(args.out / "paths.csv", [stamp | row], list(stamp | row))
    shown = ", ".join(list_shown(rows)) or "none"
    what = "may be switched on" if world.device.type == "cuda" else "equal on this CPU"
    print(f"{what}: {shown}")


if __name__ == "__main__":
    main()
