"""Memory of a GPU by plan (fastdeit/training/memory/), and the largest micro-batch that fits.

python -m benchmarks.bench_memory [--out FOLDER]

On a GPU each case trains `STEPS` steps with bench_engine's trainer, and a row has the plan beside
torch's own peak, max_memory_allocated; the exit code is 1 where they differ by more than 10 %.
Without a GPU the bytes are those of the tensors that a step on the CPU makes (MemoryMeter), of a
toy; and the largest micro-batch of each student on cards of 24 to 141 GB goes to memory-plan.csv,
from plans alone: estimates, which no GPU has shown.
"""

import gc
from typing import Any

import torch

from benchmarks.measuring import harness
from benchmarks.measuring.trainers import (
    CLASSES,
    make_config,
    make_student,
    make_trainer,
    micro_batches,
)
from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.build import build_model
from fastdeit.models.execution.memory import MemoryMeter
from fastdeit.training.memory.build import build_planner
from fastdeit.training.memory.plan import CONTEXT, find_largest

STEPS = 3
ALLOWED = 0.10
CASES = {
    "cuda": [("small", 256), ("small", 1024), ("base", 256)],
    "cpu": [("toy", 64)],
}
LARGEST = [
    (f"deit_{name}_distilled_patch16_{size}", size)
    for size in (224, 384)
    for name in ("tiny", "small", "base")
]
CARDS_GB = (24, 40, 80, 141)
GPUS = World(0, 8, 0, 8, torch.device("cuda:0"))
COLUMNS = ("date", "commit", "gpu", "cpu", *harness.PACKAGES, "student", "micro_batch")
MEASURED = (*COLUMNS, "checkpointing", "planned_mb", "measured_mb", "ratio")
ESTIMATED = ("student", "checkpointing", *(f"gb_{card}" for card in CARDS_GB))


def measure(config: Config, world: World) -> float:
    """Return the most bytes at once in the first steps of a trainer."""
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _train(config, world)
        return torch.cuda.max_memory_allocated()
    with _RealMeter() as meter:
        _train(config, world)
    return meter.peak


class _RealMeter(MemoryMeter):
    """A meter without the shapes that DeepSpeed stores as tensors without values."""

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._add(storage)


def _train(config: Config, world: World) -> None:
    trainer = make_trainer(config, world)
    for _ in range(STEPS):
        trainer.train_step(micro_batches(config, world.device))
    trainer.engine.destroy()
    gc.collect()


def compare(student: str, batch: int, checkpointing: bool, world: World) -> harness.Row:
    """Return the planned and the measured bytes of a case, both without the batches that wait in
    the loader."""
    config = make_config(student, batch, grad_checkpointing=checkpointing)
    plan = build_planner(config, world, make_student(config), None, CLASSES)(batch, checkpointing)
    images = batch * 3 * config.data.input_size**2
    of_images = images * (2 + 2 if world.device.type == "cuda" else 4 + 4)
    planned = sum(plan.parts.values()) - plan.parts["batches"] + of_images
    measured = measure(config, world)
    return {
        "student": student,
        "micro_batch": batch,
        "checkpointing": str(checkpointing),
        "planned_mb": f"{planned / 1e6:.1f}",
        "measured_mb": f"{measured / 1e6:.1f}",
        "ratio": f"{planned / measured:.3f}",
    }


def estimate() -> list[harness.Row]:
    """Return the largest micro-batches on 8 GPUs with ZeRO 1 in bf16, one row a student."""
    rows = []
    for name, size in LARGEST:
        model: Any = {"model": name}
        config = Config().replace(
            model=model, data={"input_size": size}, optim={"batch_size": 2**17}
        )
        student, _ = build_model(config, [str(row) for row in range(CLASSES)])
        planner = build_planner(config, GPUS, student, None, CLASSES)
        for checkpointing in (False, True):
            row: harness.Row = {"student": name, "checkpointing": str(checkpointing)}
            for card in CARDS_GB:
                row[f"gb_{card}"] = find_largest(planner, checkpointing, card * 1e9 - CONTEXT)
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> int:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    args = parser.parse_args()
    world = init_distributed()
    kind = world.device.type
    stamp = harness.environment(world.device)
    worst = 0.0
    for student, batch in CASES[kind]:
        for checkpointing in (False, True):
            row = stamp | compare(student, batch, checkpointing, world)
            harness.write_rows(args.out / f"{kind}-memory.csv", [row], MEASURED)
            print({name: row[name] for name in MEASURED[8:]}, flush=True)
            worst = max(worst, abs(float(row["ratio"]) - 1))
    if kind == "cpu":
        path = args.out / "memory-plan.csv"
        path.unlink(missing_ok=True)
        harness.write_rows(path, estimate(), ESTIMATED)
    return int(worst > ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
