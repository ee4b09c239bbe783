"""CPU time of `Trainer.train_step` on a CPU, beside timm with plain torch (peers.py), and the share
of it that is neither model nor optimizer.

python -m benchmarks.bench_cpu [--out FOLDER] [--rounds 12]

Both train the same student on the same batch in one process, in alternating rounds; a ratio is the
median over the rounds of timm's time divided by ours. Columns:

  ours_ms, timm_ms   CPU milliseconds of a step, median over the rounds
  compute_ms         our forward, loss and backward alone, on a batch that is mixed already
  optimizer_ms       AdamW and EMA, timed inside our step: every trainer needs this arithmetic
  overhead_pct       the rest of our step, in percent of it: mixing, the copy of the gradients,
                     their norm, statistics, Python. A value below 0 is noise
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.bench_engine import check_untrained
from benchmarks.measuring import harness
from benchmarks.measuring.peers import TimmTrainer
from benchmarks.measuring.trainers import make_batch, make_config, make_trainer
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.trainer import Trainer

COLUMNS = (
    *("date", "commit", "cpu", "torch", "student", "batch", "dtype", "threads"),
    *("ours_ms", "timm_ms", "ratio", "compute_ms", "optimizer_ms", "overhead_pct"),
)
WARM_UP = 3
STEPS = 3
"""The number of steps in a round."""


class Case(NamedTuple):
    """A student, its batch, its precision, and the threads of torch."""

    student: str
    batch: int
    dtype: str
    threads: int


CASES = [
    *(Case(student, batch, "fp32", 1) for student, batch in (("digits", 32), ("tiny", 4))),
    *(Case(student, batch, "bf16", 1) for student, batch in (("digits", 32), ("tiny", 4))),
    *(Case(student, batch, "fp32", 2) for student, batch in (("digits", 32), ("tiny", 4))),
    Case("digits", 64, "fp32", 1),
]


class Clock:
    """The CPU time spent in some functions of a step."""

    def __init__(self) -> None:
        self.ms = 0.0

    def count(self, place: Any, name: str) -> None:
        """Replace a method of `place` by one whose time is measured."""
        original = getattr(place, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = original(*args, **kwargs)
            self.ms += 1e3 * (time.process_time() - start)
            return result

        setattr(place, name, call)


def make_compute(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    """Return a function that runs only forward, loss and backward of a batch."""
    model = trainer.state.model.train()
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs, _ = trainer.forward.mix(batch, with_images=False)
    assert trainer.decode is not None and batch.teacher_record is not None
    teacher_output = trainer.decode(batch.teacher_record)

    def compute() -> None:
        outputs = trainer.forward.run(model, inputs, batch.drop_path_mask)
        parts = trainer.criterion(outputs, batch.labels, batch.lam, teacher_output)
        torch.autograd.grad(parts.loss, leaves)

    return compute


def cpu_ms(action: Callable[[], object]) -> float:
    """Return the CPU milliseconds of one call, the mean of a round."""
    start = time.process_time()
    for _ in range(STEPS):
        action()
    return 1e3 * (time.process_time() - start) / STEPS


def measure(case: Case, world: World, rounds: int) -> harness.Row:
    """Return the measured columns of a case, medians over the rounds."""
    torch.set_num_threads(case.threads)
    config = make_config(case.student, case.batch, precision=case.dtype)
    batch = make_batch(case.batch, world.device, config.data.input_size, config.model.depth or 12)
    trainer = make_trainer(config, world)
    peer = TimmTrainer(config, world.device, None)
    optimizer = Clock()
    optimizer.count(trainer.update._optimizer, "step")  # type: ignore[attr-defined]
    optimizer.count(trainer.state.ema, "update")
    actions: dict[str, Callable[[], Any]] = {
        "ours": lambda: trainer.train_step([batch]),
        "timm": lambda: peer.train_step(batch),
        "compute": make_compute(trainer, batch),
    }
    for loss in (actions["ours"]()[0], actions["timm"]()):
        check_untrained(loss.item())
    for action in actions.values():
        for _ in range(WARM_UP):
            action()
    times: dict[str, list[float]] = {name: [] for name in (*actions, "optimizer")}
    for _ in range(rounds):
        optimizer.ms = 0.0
        for name, action in actions.items():
            times[name].append(cpu_ms(action))
        times["optimizer"].append(optimizer.ms / STEPS)
    trainer.engine.destroy()
    return summarise(times)


def summarise(times: dict[str, list[float]]) -> harness.Row:
    """Return the measured columns, from the milliseconds of each round."""
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = [timm / ours for timm, ours in zip(times["timm"], times["ours"], strict=True)]
    steps = zip(times["ours"], times["compute"], times["optimizer"], strict=True)
    shares = [100 * (ours - compute - optimizer) / ours for ours, compute, optimizer in steps]
    columns = {f"{name}_ms": value for name, value in median.items()}
    columns |= {"ratio": statistics.median(ratios), "overhead_pct": statistics.median(shares)}
    return {name: float(f"{value:.3g}") for name, value in columns.items()}


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--rounds", type=int, default=12, help="alternating rounds of a row")
    args = parser.parse_args()
    world = init_distributed()
    stamp = harness.environment(world.device)
    for case in CASES:
        row = stamp | case._asdict() | measure(case, world, args.rounds)
        row = {name: row[name] for name in COLUMNS}
        harness.write_rows(args.out / "cpu-step.csv", [row], COLUMNS)
        print(*(f"{name} {row[name]}" for name in COLUMNS[4:]), sep="  ", flush=True)


if __name__ == "__main__":
    main()
