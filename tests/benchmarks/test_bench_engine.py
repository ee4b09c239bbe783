"""`benchmarks.bench_engine`: equality of timm's steps and ours, rejected losses, columns of a row.

.venv/bin/python -m pytest tests/benchmarks/test_bench_engine.py, about 14 s
"""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_engine
from benchmarks.bench_engine import CASES, IMPLEMENTATIONS, Case, check_loss, check_untrained
from benchmarks.measuring import harness, steps
from benchmarks.measuring.peers import TimmTrainer, no_branch_dropped
from benchmarks.measuring.trainers import all_kept, make_config, make_trainer, micro_batches
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.trainer import Trainer
from tests.support.launching import FOREIGN, ROOT
from tests.support.tiny_student import assert_near

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def pair(config: Config, world: World, mode: str | None = None) -> tuple[Trainer, TimmTrainer]:
    """Return our trainer and timm's with equal weights and equal EMA weights."""
    ours = make_trainer(config, world)
    theirs = TimmTrainer(config, CPU, mode)
    for model in (theirs.model, theirs.ema.module):
        model.load_state_dict(ours.state.weights())
    return ours, theirs


def assert_equal_losses(ours: Trainer, theirs: TimmTrainer, batch: Batch, steps: int) -> None:
    """Train both for some steps without DropPath and compare the losses."""
    kept = all_kept(batch)
    with no_branch_dropped():
        for _ in range(steps):
            expected = ours.train_step([kept])[0].item()
            assert theirs.train_step(kept).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_steps_of_timm_equal_ours(clip_grad: float | None, world: World) -> None:
    config = make_config("toy", 4, precision="fp32", clip_grad=clip_grad)
    ours, theirs = pair(config, world)
    assert_equal_losses(ours, theirs, micro_batches(config, CPU)[0], steps=5)
    assert ours.lr == max(group["lr"] for group in theirs.optimizer.param_groups)
    assert_near(ours.state.weights(), theirs.model.state_dict())
    ema_weights = ours.state.ema_weights()
    assert ema_weights is not None
    assert_near(ema_weights, theirs.ema.module.state_dict())


def test_timm_skips_a_non_finite_step_without_a_sync(world: World) -> None:
    config = make_config("toy", 4, precision="fp32")
    batch = micro_batches(config, CPU)[0]
    theirs = TimmTrainer(config, CPU, None)
    theirs.train_step(batch)
    before = {name: value.clone() for name, value in theirs.model.state_dict().items()}
    batch.images[0] = torch.inf
    counted = bench_engine.count_on_cpu(lambda: theirs.train_step(batch))
    assert counted["waits"] == 0
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(before[name], value)


@pytest.mark.slow
def test_compiled_steps_of_timm_equal_ours(world: World) -> None:
    config = make_config("toy", 4, precision="fp32")
    ours, theirs = pair(config, world, mode="default")
    assert_equal_losses(ours, theirs, micro_batches(config, CPU)[0], steps=3)


def test_row_has_every_column(world: World) -> None:
    case = Case("toy", 4, "bf16", "ours, clipping")
    row = bench_engine.row_of(case, bench_engine.run(case, world), harness.environment(CPU), CPU)
    assert set(row) == set(harness.COLUMNS)
    empty = {"gbps", "pct_of_copy", "idle_pct"}  # a step has no least number of bytes; no GPU
    assert {name for name in row if row[name] == ""} - {"dali", "deepspeed"} == empty
    assert row["impl"] == "ours, clipping" and row["shape"] == "toy 4"
    assert float(row["ms_p20"]) <= float(row["ms_p80"])


class Event:
    """A stand-in for a CUDA event; each record is 2 ms after the one before."""

    clock = itertools.count(0, 2)

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = next(self.clock)

    def elapsed_time(self, end: "Event") -> float:
        return float(end.at - self.at)

    def synchronize(self) -> None:
        raise AssertionError("nothing waits for one step of many")


@pytest.mark.parametrize(
    ("spans", "launches", "idle"), [([(0, 1), (3, 4)] * 50, 20, 50), ([], "", "")]
)
def test_gpu_columns_are_filled(
    spans: list[tuple[float, float]],
    launches: object,
    idle: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("synchronize", "set_sync_debug_mode", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(steps, "kernel_spans", lambda step, steps: spans)

    def step() -> torch.Tensor:
        torch.cuda.synchronize()
        return torch.tensor(math.log(1000))

    row = bench_engine.measure(step, torch.device("cuda"), images=8)
    assert (row["ms_p20"], row["ms_p50"], row["ms_p80"], row["images_per_s"]) == (2, 2, 2, 4000)
    assert (row["peak_mib"], row["waits"]) == (2, 1)
    assert (row["launches"], row["idle_pct"]) == (launches, idle)


def test_loss_that_differs_from_timm_fails_the_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = bench_engine.make_trainer

    def make(config: Config, world: World) -> Trainer:
        trainer = build(config, world)
        weights = trainer.state.weights()
        weights["head.bias"] += torch.arange(1000) / 100
        trainer.state.weights = lambda: weights  # type: ignore[method-assign]
        return trainer

    monkeypatch.setattr(bench_engine, "make_trainer", make)
    with pytest.raises(AssertionError, match="timm's with the same weights"):
        bench_engine.run(Case("toy", 4, "fp32", "ours"), world)


@pytest.mark.parametrize("loss", [float("nan"), 0.0, 20.0])
def test_loss_of_a_trained_student_fails_the_row(loss: float) -> None:
    with pytest.raises(AssertionError):
        check_untrained(loss)
    with pytest.raises(AssertionError):
        check_loss(loss, loss, "bf16")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_case_has_an_implementation_and_a_config(device: str) -> None:
    cases = CASES[device]
    assert len(set(cases)) == len(cases)
    for case in cases:
        changes = IMPLEMENTATIONS[case.impl].changes
        config = make_config(case.student, case.batch, precision=case.dtype, **changes)
        assert config.optim.batch_size == config.optim.micro_batch == case.batch


def test_failed_row_does_not_stop_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    world: World,
) -> None:
    cases = [Case("toy", 4, "fp32", impl) for impl in ("ours", "timm")]
    monkeypatch.setattr(bench_engine, "CASES", {"cpu": cases})
    monkeypatch.setattr(bench_engine, "make_trainer", lambda *arguments: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["bench_engine", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="failed: toy 4 fp32 ours"):
        bench_engine.main()
    (path,) = tmp_path.glob("*.csv")
    assert len(path.read_text().splitlines()) == 2 and ",timm," in path.read_text()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_case_starts_after_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_engine", "--out", str(tmp_path), "--seconds", "-1"])
    bench_engine.main()
    assert capsys.readouterr().out.count("skipped, no time") == len(CASES["cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_benchmark_runs_without_dali_numba_pyarrow_and_tyro() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("nvidia", "numba", "pyarrow", "tyro")))
from benchmarks import bench_engine
assert "deepspeed" not in sys.modules, "bench_step needs none"
bench_engine.run(bench_engine.Case("toy", 4, "fp32", "ours"), bench_engine.init_distributed())
"""
    alone = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=alone, check=True)
