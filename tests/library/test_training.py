"""`train_run`: what the command does, as a function that raises and leaves the process alone."""

import asyncio
import faulthandler
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.commands.runs.train import train_command
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import init_distributed
from fastdeit.library.training import train_run
from fastdeit.storage.run_folder import RunFolder
from tests.support.compare_runs import assert_same_run
from tests.support.images import write_shapes
from tests.support.launching import FLAGS


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    init_distributed()
    data = write_shapes(tmp_path_factory.mktemp("library") / "data")
    return ["--data-path", str(data), *FLAGS, "--epochs", "2", "--eval-epochs", "2"]


def configure(argv: list[str], folder: Path, **run: Any) -> Config:
    config, _ = parse_config([*argv, "--output-dir", str(folder)], "test")
    return config.replace(run=run)


def test_it_trains_what_the_command_trains_also_in_a_running_event_loop(
    argv: list[str], tmp_path: Path
) -> None:
    async def train_in_notebook() -> dict[str, Any]:
        return train_run(configure(argv, tmp_path / "function"))

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch_threads = torch.get_num_threads()
    threads = set(threading.enumerate())
    summary = asyncio.run(train_in_notebook())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_num_threads() == torch_threads
    assert not {thread.name for thread in set(threading.enumerate()) - threads} & {
        "fastdeit-stop",
        "fastdeit-watchdog",
    }
    assert summary == json.loads(RunFolder(tmp_path / "function").summary.read_text())
    assert summary["steps"] == 6 and "model/both/top1" in summary["results"]
    assert train_command([*argv, "--output-dir", str(tmp_path / "command")], "test") == 0
    assert_same_run(tmp_path / "function", tmp_path / "command")
    # the same call finds it finished
    assert train_run(configure(argv, tmp_path / "function")) == summary


def test_a_stopped_run_resumes_by_the_same_call(argv: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = train_run(configure(argv, folder, stop_after_steps=2))
    assert stopped == {"stopped": "--stop-after-steps", "steps": 2, "skipped": 0}
    assert not (folder / "summary.json").exists()
    assert train_run(configure(argv, folder))["steps"] == 6


def test_no_signal_is_taken_and_no_watchdog_runs(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(run: Any) -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        seen.append([thread.name for thread in threading.enumerate()])
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("fastdeit.library.execution.train", look)
    faulthandler.dump_traceback_later(600)
    with pytest.raises(KeyboardInterrupt):
        train_run(configure(argv, tmp_path / "run"))
    faulthandler.cancel_dump_traceback_later()
    assert seen[0] is before and "fastdeit-watchdog" not in seen[1]
    assert not (tmp_path / "run" / "lock").exists()
    assert not list((tmp_path / "run").glob("failure-*"))


def test_a_mistake_is_an_error_that_names_the_argument(argv: list[str], tmp_path: Path) -> None:
    config = configure(argv, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^output_dir must be the folder of the run \(got ''\)$"):
        train_run(config.replace(run={"output_dir": ""}))
    with pytest.raises(ValueError, match="^data_path must be an existing folder"):
        train_run(config.replace(data={"data_path": str(tmp_path / "nowhere")}))
    with pytest.raises(ValueError, match="^batch_size must be at most"):
        train_run(config.replace(optim={"batch_size": 4096, "micro_batch": 0, "lr": 1e-3}))
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_raises(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any) -> None:
        raise RunError("--max-bad-steps is 3")

    monkeypatch.setattr("fastdeit.library.execution.train", fail)
    with pytest.raises(RunError, match="^max_bad_steps is 3$"):
        train_run(configure(argv, tmp_path / "run"))
    monkeypatch.undo()
    assert train_run(configure(argv, tmp_path / "run"))["steps"] == 6
