"""Requests to stop in one process: each is followed at a step, saved and gone on from; failures are
told at the next start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.train import train_command
from fastdeit.config.parse import parse_time_limit
from fastdeit.config.schema import RunConfig
from fastdeit.data.eval_loader import EvalLoader
from fastdeit.distributed.collectives import AsyncMax, on_every_rank, on_rank0
from fastdeit.distributed.world import init_distributed
from fastdeit.reliability import launcher as ancestry
from fastdeit.reliability import stop_requests
from fastdeit.reliability.failures import format_failure, take_failures, write_failure
from fastdeit.reliability.stop_requests import REASONS, StopRequests
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


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> None:
    """In the background of a shell a process ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ask(number: int) -> Callable[[], None]:
    def fault() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # the thread takes it

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_within_two_steps_and_the_same_command_goes_on(
    number: int,
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as planted:
        in_step(planted, 3, ask(number))
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert signal.getsignal(number) == before
    assert f"stopped after step 5 of 12 ({signal.Signals(number).name})" in capsys.readouterr().out
    assert list_checkpoints(folder / "checkpoints")[0].name == "step-00000005"
    resume_to_the_same_end(folder, argv, whole)


def test_a_stop_file_stops_once(
    argv: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def leave_a_file() -> None:
        (folder / "stop").touch()
        time.sleep(1.2)  # it is looked for each second

    with monkeypatch.context() as planted:
        in_step(planted, 3, leave_a_file)
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert list_checkpoints(folder / "checkpoints")[0].name == "step-00000005"
    resume_to_the_same_end(folder, argv, whole)


def test_a_time_limit_stops_and_each_start_gets_it_anew(
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
    resume_to_the_same_end(folder, argv, whole)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30:15", 95415)],
)
def test_time_limits_are_slurms(text: str, seconds: int) -> None:
    assert parse_time_limit(text) == seconds and parse_time_limit("") is None


@pytest.mark.parametrize("text", ["x", "1:2:3:4", "-1", "1-", "1.5", "2h"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time-limit must be"):
        RunConfig(time_limit=text)


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_signal_in_an_evaluation_cuts_it_off_and_it_is_made_up_for(
    passes: int, argv: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of training, after the last epoch, and of the evaluation with which a run ends."""
    folder, original = tmp_path / "run", EvalLoader.__iter__
    done: list[int] = []

    def batches(self: EvalLoader) -> Iterator[Any]:
        for batch in original(self):
            if len(done) == passes:
                ask(signal.SIGTERM)()
            yield batch
        done.append(1)

    with monkeypatch.context() as planted:
        planted.setattr(EvalLoader, "__iter__", batches)
        assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert len(done) == passes and not (folder / "summary.json").exists()
    assert list_checkpoints(folder / "checkpoints")[0].name == f"step-{(6, 12, 12)[passes]:08}"
    resume_to_the_same_end(folder, argv, whole)


def test_a_signal_while_it_starts_leaves_nothing_behind(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fastdeit.commands import train as run

    original = run.resume
    monkeypatch.setattr(run, "resume", lambda live: (original(live), ask(signal.SIGTERM)())[0])
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")], "test") == 0
    assert (
        "stopped after step 0 of 12 (SIGTERM)" in capsys.readouterr().out
        and not (tmp_path / "run").exists()
    )


def test_an_exception_is_told_at_the_next_start_and_then_archived(
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
    told = json.loads((folder / "failure-rank0.json").read_text())
    assert (told["rank"], told["step"], told["error"]) == (0, 4, "RuntimeError: out of [/memory]")
    assert "in fail" in told["details"] and not (folder / "lock").exists()
    assert (
        train_command([*argv, "--output-dir", str(folder), "--stop-after-steps", "1"], "test") == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "the last attempt failed first on rank 0" in said
        and "RuntimeError: out of [/memory]" in said
    )
    assert not list(folder.glob("failure-*"))
    assert [
        json.loads(line)["error"] for line in (folder / "failures.jsonl").read_text().splitlines()
    ] == [told["error"]]
    shutil.copy(folder / "failures.jsonl", whole / "failures.jsonl")  # the one file more
    resume_to_the_same_end(folder, argv, whole)
    (whole / "failures.jsonl").unlink()


def test_the_earliest_failure_is_named_first(tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        write_failure(RunFolder(tmp_path), rank, "step", 7, f"error {rank}", "...")
        time.sleep(0.01)
    (tmp_path / "failure-rank3.json").write_text("{")  # of a full disk
    taken = take_failures(RunFolder(tmp_path))
    assert [failure.rank for failure in taken] == [2, 0, 1]
    assert format_failure(taken[0], RunFolder(tmp_path)).startswith(
        "the last attempt failed first on rank 2 ("
    )
    assert [path.name for path in tmp_path.iterdir()] == ["failures.jsonl"] and take_failures(
        RunFolder(tmp_path)
    ) == []


def test_a_failure_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    write_failure(RunFolder(tmp_path / "file" / "run"), 1, "step", 7, "error", "...")
    assert "rank 1: no failure file" in capsys.readouterr().err


class Aborts(list[tuple[int, str]]):
    def __call__(self, code: int, reason: str) -> None:
        self.append((code, reason))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_interrupt_aborts_and_an_echo_of_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop_requests, "_AGAIN_S", 0.3)
    aborts = Aborts()
    requests = StopRequests(None, None, None, aborts)
    requests.start()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert REASONS[requests.reason] == "SIGINT" and not aborts
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    assert not aborts
    os.kill(os.getpid(), signal.SIGINT)
    until(lambda: aborts == [(130, "interrupted twice")])
    requests.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_are_requests_too(number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so would we
    requests = StopRequests(None, None, None, Aborts())
    requests.start()
    os.kill(os.getpid(), number)
    until(lambda: REASONS[requests.reason] == signal.Signals(number).name)
    requests.close()
    signal.signal(number, before)


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = StopRequests(None, None, None, Aborts())
    requests.start()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.1)
    assert requests.reason == 0
    requests.close()
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_a_launcher_that_is_gone_is_a_request_and_after_a_while_an_abort() -> None:
    class Gone(ancestry.Launcher):
        def has_died(self) -> bool:
            return True

    aborts = Aborts()
    requests = StopRequests(None, None, Gone(), aborts, orphan_limit_s=0.2, poll_s=0.02)
    requests.start()
    until(lambda: REASONS[requests.reason] == "the launcher has ended")
    assert not aborts
    until(lambda: aborts)
    assert aborts[0] == (1, "the launcher ended 0 s ago")
    requests.close()


def test_ancestors_are_missed_when_they_die(tmp_path: Path) -> None:
    """A chain runner, launch.py, rank: the rank tells who is gone; a person's shell above it does
    not count."""
    rank = "import time; from fastdeit.reliability import launcher; watched = launcher.attach(); print(watched.has_died(), flush=True)"
    rank += "; time.sleep(1.5); print(watched.has_died())"
    script = tmp_path / "deepspeed_runner.py"
    script.write_text("import subprocess, sys; subprocess.run(sys.argv[1:])")
    launch = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    for name, expected in (("deepspeed_runner.py", "True"), ("shell.py", "False")):
        runner = script.rename(tmp_path / name)
        script = runner
        with (tmp_path / name).with_suffix(".out").open("w+") as out:
            command = [sys.executable, str(runner), sys.executable, "-c", launch, rank]
            environment = os.environ | {
                "RANK": "0",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
            process = subprocess.Popen(command, stdout=out, env=environment)
            until(lambda: out.seek(0) or out.read())  # noqa: B023
            process.kill()
            process.wait()
            until(lambda: out.seek(0) or out.read().count("\n") == 2)  # noqa: B023
            out.seek(0)
            assert out.read().split() == ["False", expected], name


def test_a_vote_is_known_one_call_later() -> None:
    ballot = AsyncMax()
    assert [ballot.submit(value) for value in (0, 3, 0, 1, 0)] == [0, 0, 3, 0, 1]
    assert AsyncMax.now(2) == 2


def test_errors_reach_every_rank_as_one_kind() -> None:
    def missing() -> None:
        raise FileNotFoundError("no file")

    assert on_rank0(lambda: 3) == 3 and on_every_rank(lambda: 4) == [4]
    for ask_ranks in (on_rank0, on_every_rank):
        with pytest.raises(ValueError, match="no file"):
            ask_ranks(missing)
