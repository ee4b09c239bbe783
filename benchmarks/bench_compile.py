"""Time of a whole optimizer step with --compile on, beside the same step without.

python -m benchmarks.bench_compile [--out DIR] [--cases N]

`Trainer.train_step` on batches that are on the device (trainers.py), of our DeiT and of timm
models. First the losses of both must agree. Then they alternate over several rounds: `speed` is the
median of each round's ratio, by the time of the GPU, or by CPU time where there is none.
`images_per_s` counts the same seconds, `compile_s` those of the first step. Rows go to
DEVICE-compile.csv.
"""

import itertools
import statistics
import time

import torch

from benchmarks.measuring import harness
from benchmarks.measuring.trainers import (
    CLASSES,
    MANIFEST,
    STEPS_PER_EPOCH,
    make_config,
    micro_batches,
)
from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.build import build_model
from fastdeit.teacher_cache.format import decode
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

ROUNDS = 9
STEPS = 5
"""The number of steps in a round."""
CASES = {
    "cpu": [("toy", 32, 32), ("test_efficientnet", 32, 32), ("test_vit", 160, 8)],
    "cuda": [("small", 224, 128), ("regnety_040", 224, 128), ("vit_small_patch16_224", 224, 128)],
}
"""The student (of trainers.py, or a timm model), the images' side in pixels, and the batch."""
COLUMNS = ("images_per_s", "speed", "compile_s")


def configure(student: str, size: int, batch: int, compiled: str) -> Config:
    ours = student in ("toy", "tiny", "small", "base")
    config = make_config(student if ours else "small", batch, compile=compiled)
    model = {} if ours else {"model": student}
    return config.replace(model=model, data={"input_size": size})


def make_trainer(config: Config, world: World) -> Trainer:
    classes = [str(number) for number in range(CLASSES)]
    model, _ = build_model(config, classes)
    return build_trainer(
        config,
        world,
        model,
        None,
        STEPS_PER_EPOCH,
        lambda records: decode(records, MANIFEST, hard=True),
    )


class Variant:
    """A trainer and the seconds of each of its rounds."""

    def __init__(self, config: Config, world: World) -> None:
        self.device = world.device
        self._trainer = make_trainer(config, world)
        self._batches = micro_batches(config, world.device)
        start = time.perf_counter()
        self.losses = [self._step()[0].item()]
        self.first = time.perf_counter() - start
        self.losses += [self._step()[0].item() for _ in range(STEPS)]
        self.seconds: list[float] = []

    def _step(self) -> torch.Tensor:
        return self._trainer.train_step(self._batches)

    def run_round(self) -> None:
        start = self._now()
        for _ in range(STEPS):
            self._step()
        self.seconds.append((self._now() - start) / STEPS)

    def _now(self) -> float:
        """Return the time after a wait for the GPU, or the CPU seconds of the process."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def bench(student: str, size: int, batch: int, world: World) -> list[harness.Row]:
    """Compare the losses of both variants, then return their rows."""
    names = {"off": "without a compiler", "on": "compiled"}
    pair = [Variant(configure(student, size, batch, setting), world) for setting in names]
    losses = [torch.tensor(variant.losses) for variant in pair]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
    for number in range(ROUNDS):
        for variant in pair[:: 1 if number % 2 else -1]:
            variant.run_round()
    rows = []
    for name, variant in zip(names.values(), pair, strict=True):
        ratios = [off / own for off, own in zip(pair[0].seconds, variant.seconds, strict=True)]
        dtype = "bf16" if world.device.type == "cuda" else "fp32"
        row = harness.case_columns("compile", "step", f"{student} {batch}x{size}", dtype, name)
        row["images_per_s"] = f"{batch / statistics.median(variant.seconds):.4g}"
        row["speed"] = f"{statistics.median(ratios):.3f}"
        rows.append(row | {"compile_s": f"{variant.first:.1f}" if name == "compiled" else ""})
    return rows


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--cases", type=int, help="number of cases, from the first; default: all")
    args = parser.parse_args()
    world = init_distributed()
    place = "cpu" if world.device.type == "cpu" else harness.device_slug(world.device)
    stamp = harness.environment(world.device)
    for case in itertools.islice(CASES[world.device.type], args.cases):
        torch.compiler.reset()
        rows = [stamp | row for row in bench(*case, world)]
        for row in rows:
            print("  ".join(f"{row[name]}" for name in ("shape", "impl", *COLUMNS)), flush=True)
        harness.write_rows(args.out / f"{place}-compile.csv", rows, list(rows[0]))


if __name__ == "__main__":
    main()
