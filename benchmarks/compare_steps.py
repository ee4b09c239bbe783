"""Comparison of two commits bit for bit: thirty training steps in each form of the trainer.

In each of two checkouts, in one process or in two:

    python -m benchmarks.compare_steps record FOLDER
    python -m torch.distributed.run --nproc_per_node 2 -m benchmarks.compare_steps record FOLDER

Instead of thirty steps, three steps from the checkpoints of another recording:

    python -m benchmarks.compare_steps record FOLDER --restore OTHER

Then:

    python -m benchmarks.compare_steps compare FOLDER OTHER

The student, the batches and the settings are those of tests/support/tiny_student.py. `record`
writes FOLDER/steps.json: for each form the losses, and a SHA-256 of weights, moments and EMA after
thirty steps and after three more. Compare on one machine, as another processor may round
differently. The exit code is 1 if a form differs.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from fastdeit.checkpoint.store import load_checkpoint, save_checkpoint
from fastdeit.distributed.collectives import barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import BATCH, configure, make_trainer, run_steps

STEPS = 30
MORE = 3
"""The number of steps after a recording's checkpoint."""
PRECISIONS = (("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 2), ("bf16", 3))
"""The precision and the ZeRO stage of each form; in bf16 stage 1 runs as 2."""
OPTIONS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (1, {"clip_grad": 0.5}),
    (1, {"clip_grad": 0.5, "layer_decay": 0.7}),
    (2, {}),
    (4, {"clip_grad": 0.5}),
)
"""The micro-batches of a step, and the changed fields of the config, by form."""


def forms(world_size: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield name, micro-batch and changed fields of the config of each form."""
    for (precision, stage), (accumulate, options) in itertools.product(PRECISIONS, OPTIONS):
        micro = BATCH // world_size // accumulate
        name = "-".join(f"{key}_{value}" for key, value in options.items())
        fields = {"precision": precision, "zero_stage": stage, "micro_batch": micro, **options}
        yield f"{precision}-zero_{stage}-x{accumulate}-{name or 'plain'}", micro, fields


def hash_tensors(named: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, value in sorted(named.items()):
        found.update(name.encode())
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_state(trainer: Trainer) -> dict[str, str]:
    return {stem: hash_tensors(named) for stem, named in trainer.state.gather()[0].items()}


def record_form(
    trainer: Trainer, micro: int, world: World, checkpoints: Path, restore: Path | None
) -> dict[str, Any]:
    """Train, or restore another recording's checkpoint; then train three steps. A collective."""

    def take(count: int) -> list[float]:
        return run_steps(trainer, count, micro, world.rank, world.size)

    found: dict[str, Any] = {}
    if restore is None:
        found = {"losses": take(STEPS), "state": hash_state(trainer)}
        tensors, state = trainer.state.gather()
        if world.rank == 0:
            save_checkpoint(checkpoints, state["step"], tensors, state, keep=2)
    else:
        (checkpoint,) = restore.glob("step-*")
        trainer.state.load(*load_checkpoint(checkpoint))
    return found | {"more": take(MORE), "state_after_more": hash_state(trainer)}


def record(folder: Path, restore: Path | None) -> None:
    """Write folder/steps.json, and folder/FORM/step-N."""
    world = init_distributed()
    found = {}
    for name, micro, fields in forms(world.size):
        trainer = make_trainer(configure(**fields), world)
        found[name] = record_form(trainer, micro, world, folder / name, restore and restore / name)
        trainer.engine.destroy()
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "steps.json").write_text(json.dumps(found, indent=1))
    barrier()


def compare(one: Path, other: Path) -> int:
    """Print the differences between the entries that both recordings have; return the exit code."""
    first, second = (json.loads((folder / "steps.json").read_text()) for folder in (one, other))
    different = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        for key in sorted(first[name].keys() & second[name].keys()):
            if first[name][key] != second[name][key]:
                different.append(f"{name}: {key}")
    print(*different, f"{len(first)} forms, {len(different)} differences", sep="\n")
    return 1 if different else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    record_parser = actions.add_parser("record")
    record_parser.add_argument("folder", type=Path)
    record_parser.add_argument("--restore", type=Path, help="folder of another recording")
    compare_parser = actions.add_parser("compare")
    compare_parser.add_argument("folders", type=Path, nargs=2)
    args = parser.parse_args()
    if args.action == "compare":
        sys.exit(compare(*args.folders))
    record(args.folder, args.restore)
    hard_exit(0)


if __name__ == "__main__":
    main()
