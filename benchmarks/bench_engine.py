"""Time, launches and waits of `Trainer.train_step`, against timm with torch.compile for the same
work.

python -m benchmarks.bench_engine [--out FOLDER] [--seconds 240]

A step contains mixing, student, loss, backward, DeepSpeed's step, the schedule, the guard against
NaN and EMA. Batches are on the device (trainers.py), the teacher's outputs are recorded. peers.py
describes the peer. Before a row of ours is timed, its first loss must equal that of timm's model
with the same weights. Columns that only this benchmark has:

  launches   on a GPU the kernels, copies and fills in the profile; on a CPU the operators of
             counting.py, without those of a CUDA graph, which a tape replaces (tape.py)
  host_ms    CPU time of the process from an idle device until the step returns, median. A wait
             uses the CPU, so it is included, also a wait for a full queue of launches
  waits      calls of `synchronize`, and on a GPU the operators that
             torch.cuda.set_sync_debug_mode warns about; on a CPU the reads of counting.py. In
             ours on a GPU, one is the wait for the step before, while this one is queued
             (docs/step.md)
  idle_pct   percent of the time between the first and the last kernel of some steps in which no
             kernel runs, by the profiler

ms is the time between consecutive steps without a pause, as in training: on a GPU by CUDA events,
on a CPU in CPU time of the process. A row that fails is reported, the others run, and the exit code
is 1.
"""

import contextlib
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.bench_step import GFLOP, best_backend, with_mfu
from benchmarks.measuring import harness
from benchmarks.measuring.peers import TimmTrainer, no_branch_dropped
from benchmarks.measuring.steps import (
    Step,
    count_on_cpu,
    count_on_gpu,
    find_quantiles,
    host_ms,
    step_times_ms,
)
from benchmarks.measuring.tape import TapeRecorder
from benchmarks.measuring.trainers import CLASSES, all_kept, make_batch, make_config, make_trainer
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.sizes import WIDTHS
from fastdeit.training.graphs.cuda import CudaRecorder
from fastdeit.training.graphs.graph import Graphs
from fastdeit.training.trainer import Trainer

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""The relative tolerance of the first loss."""
SHOWN = ("ms_p50", "images_per_s", "peak_mib", *harness.COUNTED)


class Case(NamedTuple):
    """One row of the benchmark; impl: a key of `IMPLEMENTATIONS`."""

    student: str
    batch: int
    dtype: str
    impl: str


class Implementation(NamedTuple):
    """A way to train: changed fields of the config; mode: of torch.compile, for timm; graphs:
    whether steps are replayed."""

    changes: dict[str, Any]
    is_timm: bool = False
    mode: str | None = None
    graphs: bool = False


IMPLEMENTATIONS = {
    "ours": Implementation({}),
    "ours, CUDA graphs": Implementation({}, graphs=True),
    "ours, clipping": Implementation({"clip_grad": 1.0}),
    "ours, ZeRO 3": Implementation({"zero_stage": 3}),
    "ours, reference kernels": Implementation({"kernels": "reference"}),
    "timm": Implementation({}, is_timm=True),
    "timm compiled": Implementation({}, is_timm=True, mode="default"),
    "timm compiled, clipping": Implementation({"clip_grad": 1.0}, is_timm=True, mode="default"),
    "timm compiled, CUDA graphs": Implementation({}, is_timm=True, mode="reduce-overhead"),
}


def _cases(
    students: Iterable[tuple[str, int]], impls: Iterable[str], dtype: str = "bf16"
) -> list[Case]:
    return [Case(student, batch, dtype, impl) for student, batch in students for impl in impls]


SMALL = [("small", 256), ("small", 1024)]
GRAPHS = ["ours", "ours, CUDA graphs"]
BOTH = ("ours", "timm compiled")
CASES = {
    "cuda": [
        *_cases(SMALL[:1], GRAPHS),
        *_cases([("small", 128)], GRAPHS),
        *_cases(SMALL[1:], GRAPHS),
        *_cases(SMALL, ["timm compiled"]),
        *_cases(SMALL[:1], ["ours, clipping", "timm compiled, CUDA graphs"]),
        *_cases([("tiny", 256), ("tiny", 1024), ("base", 256)], BOTH),
        *_cases(
            SMALL[:1],
            ["ours, ZeRO 3", "timm compiled, clipping", "ours, reference kernels", "timm"],
        ),
        *_cases([("base", 1024)], BOTH),
    ],
    # compiling for the CPU takes long and shows nothing about a GPU
    "cpu": [
        *_cases([("toy", 2)], [*GRAPHS, "ours, clipping", "ours, ZeRO 3", "timm"], "bf16"),
        *_cases([("toy", 2)], ["ours", "ours, clipping", "ours, ZeRO 3", "timm"], "fp32"),
    ],
}
"""The cases of each device, the most important first: those that would start after the time limit
are skipped."""


def build(case: Case, world: World) -> tuple[Step, Callable[[], None]]:
    """Return a step that is ready to be timed, and a function that releases its memory.

    Raises AssertionError for a wrong first loss.
    """
    impl = IMPLEMENTATIONS[case.impl]
    config = make_config(case.student, case.batch, precision=case.dtype, **impl.changes)
    batch = make_batch(case.batch, world.device, config.data.input_size)
    if impl.is_timm:
        peer = TimmTrainer(config, world.device, impl.mode)
        return lambda: peer.train_step(batch), lambda: None
    trainer = make_trainer(config, world)
    if impl.graphs:
        record(trainer, batch)
    expected = first_loss(config, world.device, trainer.state.weights())
    check_loss(trainer.train_step([all_kept(batch)])[0].item(), expected, case.dtype)
    return lambda: trainer.train_step([batch])[0], trainer.engine.destroy


def record(trainer: Trainer, batch: Batch) -> None:
    """Make a trainer replay its steps, on a CPU by tapes. Raises AssertionError if it cannot."""
    device = trainer.engine.device
    trainer.graphs = Graphs(CudaRecorder(device) if device.type == "cuda" else TapeRecorder())
    trainer.record_graphs(batch)
    assert not trainer.graphs.failures, trainer.graphs.failures


def first_loss(config: Config, device: torch.device, weights: dict[str, torch.Tensor]) -> float:
    """Return the loss of timm's model with these weights on `make_batch`; drop no branch."""
    peer = TimmTrainer(config, device, None)
    peer.model.load_state_dict(weights)
    batch = make_batch(config.optim.batch_size, device, config.data.input_size)
    with torch.no_grad(), no_branch_dropped():
        return peer.loss(batch).item()


def check_loss(found: float, expected: float, dtype: str) -> None:
    """Raise AssertionError unless the loss is that of the peer and of an untrained student."""
    if not math.isclose(found, expected, rel_tol=TOLERANCE[dtype]):
        raise AssertionError(
            f"the first loss is {found}, timm's with the same weights is {expected}"
        )
    check_untrained(found)


def check_untrained(loss: float) -> None:
    """Raise AssertionError unless the loss is about log(CLASSES), that of an untrained student."""
    if not abs(loss - math.log(CLASSES)) <= 1:  # NaN fails, too
        raise AssertionError(
            f"the first loss is {loss}, but that of an untrained student with {CLASSES} classes is "
            f"about {math.log(CLASSES):.1f}"
        )


def measure(step: Step, device: torch.device, images: int) -> harness.Row:
    """Return the measured and the counted columns."""
    check_untrained(step().item())
    p20, p50, p80 = find_quantiles(step_times_ms(step, device))
    shown = {"ms_p20": p20, "ms_p50": p50, "ms_p80": p80, "images_per_s": 1e3 * images / p50}
    shown |= {"peak_mib": harness.peak_mib(step, device), "host_ms": host_ms(step, device)}
    counted = count_on_gpu(step) if device.type == "cuda" else count_on_cpu(step)
    empty: harness.Row = {"gbps": "", "pct_of_copy": "", "launches": "", "idle_pct": ""}
    return empty | {name: float(f"{value:.4g}") for name, value in shown.items()} | counted


@contextlib.contextmanager
def attention(case: Case, device: torch.device) -> Iterator[None]:
    """Select the fastest of SDPA's backends at this shape, for timm."""
    if device.type != "cuda" or not IMPLEMENTATIONS[case.impl].is_timm:
        yield
        return
    backend = best_backend(make_batch(case.batch, device), WIDTHS[case.student][2])
    with sdpa_kernel([backend, SDPBackend.MATH]):
        yield


def run(case: Case, world: World) -> harness.Row:
    """Return the columns of one case."""
    with attention(case, world.device):
        step, release = build(case, world)
        try:
            return measure(step, world.device, case.batch)
        finally:
            release()


def free_memory(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def row_of(
    case: Case, measured: harness.Row, stamp: harness.Row, device: torch.device
) -> harness.Row:
    shape = f"{case.student} {case.batch}"
    what = harness.case_columns("engine", "step", shape, case.dtype, case.impl)
    if case.student in GFLOP:
        measured = with_mfu(measured, case.student, device)
    return stamp | what | measured


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--seconds", type=float, default=240, help="start no case after this time")
    args = parser.parse_args()
    world = init_distributed()
    start = time.monotonic()
    stamp = harness.environment(world.device)
    failed = []
    for case in CASES[world.device.type]:
        if time.monotonic() - start > args.seconds:
            print("skipped, no time:", *case)
            continue
        print(*case, flush=True)
        try:
            row = row_of(case, run(case, world), stamp, world.device)
        except torch.OutOfMemoryError:
            print("  skipped: does not fit into memory")
        except Exception:  # a row that fails must not stop the others
            traceback.print_exc()
            failed.append(" ".join(map(str, case)))
        else:
            harness.append([row], world.device, args.out)
            print("  " + "  ".join(f"{name} {row[name]}" for name in SHOWN), flush=True)
        free_memory(world.device)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
