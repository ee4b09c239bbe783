"""Launches, reads and synchronisations of an optimizer step, counted on the CPU: numbers, not
times, which are equal on every machine.

python -m benchmarks.bench_counts [-o FILE]

One process; the toy student of trainers.py has a DeiT's 12 blocks. counting.py defines the counts,
tests/training/test_step_counts.py sets upper limits for them. `step_launches` are those of the
update (training/zero/update.py): ours at ZeRO 1 and 2, DeepSpeed's `step()` at 3.
"""

from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.measuring import harness
from benchmarks.measuring.counting import Place, StepCounter
from benchmarks.measuring.trainers import make_config, make_trainer, micro_batches
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.zero.flat_update import FlatUpdate

WARM_UP = 3
"""The number of steps before the counted one: DeepSpeed's timer starts at the third."""
MICRO_BATCH = 2
CPU_ONLY = {"fastdeit.kernels.mix_kernels.cpu"}
"""The modules that no GPU runs, whose reads do not count."""


class Form(NamedTuple):
    """A way to train the student; accumulate: micro-batches of an optimizer step."""

    precision: str
    zero_stage: int
    clip_grad: float | None = None
    accumulate: int = 1


FORMS = [
    Form(*stage, *rest)
    for stage in (("bf16", 2), ("fp32", 1), ("bf16", 3))
    for rest in ((None, 1), (1.0, 1), (None, 2))
]


class Counts(NamedTuple):
    """The counts of one optimizer step."""

    whole: StepCounter
    step: StepCounter
    """The update of the weights: ours, or DeepSpeed's `step()`."""


def count_step(form: Form, world: World) -> Counts:
    """Return the counts of one step of a form, after `WARM_UP` steps."""
    config = make_config(
        "toy",
        form.accumulate * MICRO_BATCH,
        accumulate=form.accumulate,
        clip_grad=form.clip_grad,
        precision=form.precision,
        zero_stage=form.zero_stage,
    )
    trainer = make_trainer(config, world)
    batches = micro_batches(config, world.device)
    for _ in range(WARM_UP):
        trainer.train_step(batches)
    counts = Counts(StepCounter(), StepCounter())
    owner = trainer.update if isinstance(trainer.update, FlatUpdate) else trainer.engine
    original = owner.step

    def step(*args: Any, **kwargs: Any) -> Any:
        with counts.step:
            return original(*args, **kwargs)

    with mock.patch.object(owner, "step", step), counts.whole:
        trainer.train_step(batches)
    trainer.engine.destroy()
    return counts


def device_reads(counter: StepCounter) -> dict[Place, int]:
    """Return the reads that a step on a GPU also has."""
    return {place: count for place, count in counter.reads.items() if place.module not in CPU_ONLY}


def row_of(form: Form, counts: Counts) -> harness.Row:
    whole = counts.whole
    found = {
        "launches": whole.launches,
        "step_launches": counts.step.launches,
        "reads": sum(device_reads(whole).values()),
    }
    shown = {name: "" if value is None else value for name, value in form._asdict().items()}
    return {"bench": "counts", **shown, **found, "synchronisations": whole.synchronisations.total()}


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-engine.csv")
    output = parser.parse_args().output
    world = init_distributed()
    stamp = harness.environment(world.device)
    for form in FORMS:
        row = row_of(form, count_step(form, world))
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        harness.write_rows(output, [stamp | row], list(stamp | row))


if __name__ == "__main__":
    main()
