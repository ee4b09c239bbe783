"""Checkpoints of DeiT-Ti, S and B: size in MiB, and seconds to gather, write, verify and load.

python -m benchmarks.bench_checkpoint [-o FILE] [--folder FOLDER] [--rounds 3]

One process, ZeRO 1, fp32 masters, both moments and EMA. Then the time that training loses by a
save that it waits for, and by a save in the background thread: that of the call (`held_*_s`), and
the extra time of the steps during the write (`slowed_s`; on a CPU the thread and the step share the
cores). The values are medians over rounds, the disk is that of --folder.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import harness
from fastdeit.checkpoint.store import load_checkpoint, save_checkpoint, verify_checkpoint
from fastdeit.checkpoint.weight_files import WeightFiles
from fastdeit.checkpoint.writer import CheckpointWriter
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.student import build_student
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

MODELS = ("tiny", "small", "base")
BATCH = 2
SIZE = 224
CLASSES = 1000
COLUMNS = (
    *("parameters", "mib", "gather_s", "write_s", "verify_s", "load_s", "install_s"),
    *("held_waiting_s", "held_thread_s", "held_ratio", "step_s", "slowed_s"),
)
"""The columns. load_s: the time to verify and read into memory; install_s: from memory into the
engine; held_ratio: held_thread_s / held_waiting_s."""


def make_trainer(name: str, world: World) -> Trainer:
    model = f"deit_{name}_distilled_patch16_224"
    config = Config().replace(
        model={"model": model},
        optim={"batch_size": BATCH, "epochs": 1, "warmup_epochs": 0},
        run={"zero_stage": 1, "precision": "fp32"},
        distill={"distillation_type": "none"},
    )
    return build_trainer(config, world, build_student(model, num_classes=CLASSES), None, 1000)


def make_batch(trainer: Trainer, device: torch.device) -> Batch:
    depth = len(trainer.state.model.drop_path_rates)
    return Batch(
        unmixed=torch.randn(BATCH, 3, SIZE, SIZE, device=device),
        labels=torch.arange(BATCH, device=device),
        lam=torch.full((BATCH,), 0.5, device=device),
        box=torch.zeros(BATCH, 4, dtype=torch.int32, device=device),
        drop_path_mask=torch.ones(BATCH, depth, 2, dtype=torch.bool, device=device),
        ordinals=torch.arange(BATCH),
        image_index=torch.arange(BATCH),
    )


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def parts_of_a_save(trainer: Trainer, folder: Path) -> dict[str, float]:
    """Time a save that training waits for, and the load."""
    found: dict[str, float] = {}
    found["gather_s"], (tensors, state) = seconds(trainer.state.gather)
    found["write_s"], path = seconds(
        lambda: save_checkpoint(folder, state["step"], tensors, state, keep=2)
    )
    found["held_waiting_s"] = found["gather_s"] + found["write_s"]
    found["mib"] = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    found["verify_s"], _ = seconds(lambda: verify_checkpoint(path, trainer.state.layout()))
    found["load_s"], loaded = seconds(lambda: load_checkpoint(path, trainer.state.layout()))
    for stem, named in tensors.items():
        for name, tensor in named.items():
            harness.gate(loaded[0][stem][name], tensor, f"{stem} {name}")
    found["install_s"], _ = seconds(lambda: trainer.state.load(*loaded))
    return found


def beside_training(
    trainer: Trainer, batch: Batch, folder: Path, write_s: float
) -> dict[str, float]:
    """Time a save by the thread: the call, and the extra time of the steps during the write."""
    step_s = statistics.median(seconds(lambda: trainer.train_step([batch]))[0] for _ in range(3))
    count = max(1, round(write_s / step_s))
    writer = CheckpointWriter(WeightFiles(RunFolder(folder), {}, {}), keep=2, rank=0)
    held_s, _ = seconds(lambda: writer.save(*trainer.state.gather()))
    during_s, _ = seconds(lambda: [trainer.train_step([batch]) for _ in range(count)])
    writer.wait()
    writer.close()
    return {"held_thread_s": held_s, "step_s": step_s, "slowed_s": during_s - count * step_s}


def measure(name: str, world: World, root: Path, rounds: int) -> dict[str, float]:
    """Return the measured columns of a model, medians over the rounds."""
    trainer = make_trainer(name, world)
    batch = make_batch(trainer, world.device)
    trainer.train_step([batch])  # Adam's moments come with the first step
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        shutil.rmtree(root / name, ignore_errors=True)
        parts = parts_of_a_save(trainer, root / name)
        found.append(parts | beside_training(trainer, batch, root / name, parts["write_s"]))
    medians = {column: statistics.median(one[column] for one in found) for column in found[0]}
    medians["held_ratio"] = statistics.median(
        one["held_thread_s"] / one["held_waiting_s"] for one in found
    )
    medians["parameters"] = sum(
        parameter.numel() for parameter in trainer.state.eval_model.parameters()
    )
    trainer.engine.destroy()
    shutil.rmtree(root / name)
    return medians


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, help="default: results/DEVICE-checkpoint.csv")
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for temporary checkpoints; default: the system's temporary folder",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    world = init_distributed()
    stamp = harness.environment(world.device) | {"bench": "checkpoint"}
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as root:
            found = measure(name, world, Path(root), args.rounds)
        row: harness.Row = {"setting": name}
        row |= {column: f"{found[column]:.4g}" for column in COLUMNS}
        row["parameters"] = int(found["parameters"])
        print("  ".join(f"{column} {value}" for column, value in row.items()), flush=True)
        rows.append(stamp | row)
    place = "cpu" if world.device.type == "cpu" else harness.device_slug(world.device)
    path = args.output or harness.RESULTS / f"{place}-checkpoint.csv"
    harness.write_rows(path, rows, list(rows[0]))


if __name__ == "__main__":
    main()
