"""Supervision of one process: each stop request is followed at a step, with a checkpoint; failures
are reported at the next start."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.runs.train import train_command
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.distributed.world import init_distributed
from fastdeit.reliability.failures import Failure
from fastdeit.storage.jsonl import read_records
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Trainer
from tests.support.compare_runs import assert_same_run
from tests.support.images import write_shapes
from tests.support.launching import FLAGS

TOTAL = 12


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    init_distributed()
    data = write_shapes(tmp_path_factory.mktemp("supervised") / "data")
    return ["--data-path", str(data), *FLAGS, "--epochs", "4", "--eval-epochs", "2"]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    return folder


def send(number: int) -> Callable[[], None]:
    def fault() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # the thread reads it

    return fault


def in_step(monkeypatch: pytest.MonkeyPatch, step: int, fault: Callable[[], object]) -> None:
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> torch.Tensor:
        return original(self, faulty(batches) if self.step == step else batches)

    def faulty(batches: Any) -> Iterator[Any]:
        for batch in batches:
            fault()
            yield batch

    monkeypatch.setattr(Trainer, "train_step", train_step)


def resume_to_the_same_end(folder: Path, argv: list[str], whole: Path) -> None:
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert_same_run(folder, whole)


# one handler serves both signals; that SIGINT has it is seen by default in test_stop_requests.py
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_stops_within_two_steps_and_the_same_command_resumes(
    number: int,
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as planted:
        in_step(planted, 3, send(number))
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert f"stopped after step 5 of 12 ({signal.Signals(number).name})" in capsys.readouterr().out
    assert list_checkpoints(folder / "checkpoints")[0].name == "step-00000005"
    resume_to_the_same_end(folder, argv, whole)


def test_stop_file_stops_once(
    argv: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def create_stop_file() -> None:
        (folder / "stop").touch()
        time.sleep(1.2)  # it is looked for each second

    with monkeypatch.context() as planted:
        in_step(planted, 3, create_stop_file)
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert list_checkpoints(folder / "checkpoints")[0].name == "step-00000005"
    resume_to_the_same_end(folder, argv, whole)


def test_time_limit_counts_from_each_start(
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    limited = [*argv, "--time-limit", "0:02", "--output-dir", str(folder)]
    with monkeypatch.context() as planted:
        in_step(planted, 3, lambda: time.sleep(3.2))
        assert train_command(limited, "test") == 0
    assert "after step 5 of 12 (--time-limit)" in capsys.readouterr().out
    assert RunFolder(folder).report.is_file()
    resume_to_the_same_end(folder, argv, whole)


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_signal_interrupts_an_evaluation_which_is_repeated_later(
    passes: int, argv: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-training, after the last epoch, and in the evaluation that ends a run."""
    folder, original = tmp_path / "run", EvalLoader.__iter__
    done: list[int] = []

    def batches(self: EvalLoader) -> Iterator[Any]:
        for batch in original(self):
            if len(done) == passes:
                send(signal.SIGTERM)()
            yield batch
        done.append(1)

    with monkeypatch.context() as planted:
        planted.setattr(EvalLoader, "__iter__", batches)
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert len(done) == passes and not (folder / "summary.json").exists()
    assert list_checkpoints(folder / "checkpoints")[0].name == f"step-{(6, 12, 12)[passes]:08}"
    resume_to_the_same_end(folder, argv, whole)


def test_signal_during_start_up_leaves_no_folder(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fastdeit.library import execution as run

    original = run.resume
    monkeypatch.setattr(run, "resume", lambda live: (original(live), send(signal.SIGTERM)())[0])
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")], "test") == 0
    assert "stopped after step 0 of 12 (SIGTERM)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_exception_is_reported_at_the_next_start_and_then_archived(
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"

    def fail() -> None:
        raise RuntimeError("out of [/memory]")

    with monkeypatch.context() as planted, pytest.raises(RuntimeError):
        in_step(planted, 4, fail)
        train_command([*argv, "--output-dir", str(folder)], "test")
    failure = json.loads((folder / "failure-rank0.json").read_text())
    assert (failure["rank"], failure["step"]) == (0, 4)
    assert failure["error"] == "RuntimeError: out of [/memory]"
    assert "in fail" in failure["details"] and not (folder / "lock").exists()
    one_step = [*argv, "--output-dir", str(folder), "--stop-after-steps", "1"]
    assert train_command(one_step, "test") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the last attempt failed first on rank 0" in said
    assert "RuntimeError: out of [/memory]" in said
    assert not list(folder.glob("failure-*"))
    archived = read_records(RunFolder(folder).failures, Failure)
    assert [each.error for each in archived] == [failure["error"]]
    # the one file that the whole run has not
    shutil.copy(folder / "failures.jsonl", whole / "failures.jsonl")
    resume_to_the_same_end(folder, argv, whole)
    (whole / "failures.jsonl").unlink()
