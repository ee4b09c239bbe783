"""Faults under the real launcher with two processes: what is saved, reported and resumed."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdeit.checkpoint.store import list_checkpoints, verify_checkpoint
from fastdeit.commands.runs.train import train_command
from fastdeit.distributed.world import init_distributed
from tests.support.compare_runs import assert_same_run
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, Launch, steps_done
from tests.support.ranks import Ranks, run_fastdeit

pytestmark = pytest.mark.usefixtures("kill_launched_runs")
TOTAL = 36  # steps


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        "--data-path",
        str(write_shapes(tmp_path_factory.mktemp("faults") / "data")),
        *FLAGS,
        "--epochs",
        "12",
    ]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_to_the_end(folder, argv)
    return folder


def train_to_the_end(folder: Path, argv: list[str]) -> str:
    """Train on two processes that no launcher started, which takes half the time; return the
    output."""
    log = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
    ranks = Ranks(log, run_fastdeit, ["train", *argv, "--output-dir", str(folder)])
    assert ranks.wait() == 0, ranks.output
    return ranks.output


def saved_steps(folder: Path) -> list[int]:
    """Of the whole checkpoints, newest first; that every one is whole is asserted."""
    found = list_checkpoints(folder / "checkpoints")
    for path in found:
        verify_checkpoint(path)
    return [int(path.name[5:]) for path in found]


def failures(folder: Path) -> dict[int, dict]:
    return {
        found["rank"]: found
        for found in (json.loads(file.read_text()) for file in folder.glob("failure-rank*.json"))
    }


def resume_to_the_same_end(folder: Path, argv: list[str], whole: Path) -> str:
    """Resume the run; assert that it ends like one that nothing happened to; return its output."""
    output = train_to_the_end(folder, argv)
    assert_same_run(folder, whole, other_files=frozenset({"failures.jsonl"}))
    return output


def test_run_stopped_by_sigterm_and_then_by_a_killed_rank_ends_the_same(
    argv: list[str], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    first = Launch(folder, argv, "slow:*:150")
    first.until(lambda: steps_done(folder) >= 4)
    # a second run in the same folder
    init_distributed()
    with pytest.raises(SystemExit) as end:
        train_command([*argv, "--output-dir", str(folder)], "test")
    rank = first.find("faulty.py")[0].pid
    assert end.value.code == 2 and f"is in use by process {rank} on" in capfd.readouterr().err
    # the runner dies of it at once, and tells nobody
    first.process.send_signal(signal.SIGTERM)
    assert_stops(first, "the launcher has ended")
    assert (folder / "report.html").is_file() and not first.alive()
    stopped = saved_steps(folder)[0]

    second = Launch(folder, argv, f"kill:1:{stopped + 4}")
    second.until(lambda: steps_done(folder) >= stopped + 4)
    began = time.monotonic()
    assert second.wait() != 0 and time.monotonic() - began < 10
    assert f"after step {stopped} of {TOTAL}" in second.output
    assert failures(folder)[0]["step"] == stopped + 4
    said = resume_to_the_same_end(folder, argv, whole)
    assert "the last attempt failed first on rank 0" in said
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0  # it is finished


@pytest.mark.slow
def test_hanging_rank_is_ended_with_the_stacks_of_all_ranks(
    argv: list[str], tmp_path: Path
) -> None:
    launch = Launch(tmp_path / "run", [*argv, "--step-limit", "4"], "hang:1:5")
    assert launch.wait() == 1
    assert_reported_by_the_watchdog(launch, {0, 1})
    assert (
        "in fail_to_return" in launch.output
        and "reduce_scatter_tensor" in failures(launch.folder)[0]["details"]
    )


def assert_reported_by_the_watchdog(launch: Launch, ranks: set[int]) -> None:
    found = failures(launch.folder)
    assert set(found) == ranks
    for rank, failure in found.items():
        assert (
            failure["error"].startswith("no progress for 4 s in step (--step-limit")
            and failure["step"] == 5
        ), failure
        assert f"rank {rank}, after step 5, in step: no progress for 4 s" in launch.output
    assert launch.output.count("Current thread") >= len(ranks)  # faulthandler's stacks


@pytest.mark.slow
def test_hanging_storage_is_reported_as_section_data(argv: list[str], tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(argv[1], data)
    argv = ["--data-path", str(data), *argv[2:]]
    image = next((data / "train" / "square").glob("*.jpg"))
    launch = Launch(folder, [*argv, "--data-limit", "4", "--step-limit", "4"], "slow:*:100")
    launch.until(lambda: steps_done(folder) >= 4)
    image.unlink()
    os.mkfifo(image)  # to open it is to wait for ever
    assert launch.wait() == 1
    waiting = [failure for failure in failures(folder).values() if failure["section"] == "data"]
    assert waiting and all("stream.py" in failure["details"] for failure in waiting)
    assert waiting[0]["error"].startswith("no progress for 4 s in data (--data-limit")


@pytest.mark.slow
def test_kill_during_a_save_loses_steps_only(argv: list[str], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launch = Launch(folder, argv, "save:*:0")
    launch.until((tmp_path / "reached-save").exists)
    next(rank for rank in launch.find("faulty.py") if rank.environ()["RANK"] == "0").kill()
    assert launch.wait() != 0
    assert [path.name for path in (folder / "checkpoints").glob("*.tmp-*")]
    assert "the last attempt failed first on rank 1" in resume_to_the_same_end(folder, argv, whole)
    assert not list((folder / "checkpoints").glob("*.tmp-*"))


@pytest.mark.slow
def test_error_on_one_rank_is_reported_by_it_and_ends_all(argv: list[str], tmp_path: Path) -> None:
    launch = Launch(tmp_path / "run", argv, "refuse:1:0")
    launch.until((tmp_path / "reached-refuse").exists)
    began = time.monotonic()
    assert launch.wait() == 2 and time.monotonic() - began < 10
    assert (
        f"fastdeit: error on rank 1 ({socket.gethostname()}): planted, on one rank\n"
        in launch.output
    )
    assert (
        launch.output.count("planted") == 1
        and "Traceback" not in launch.output
        and not failures(launch.folder)
    )


@pytest.mark.slow
def test_exception_in_one_rank_is_reported_with_rank_and_step(
    argv: list[str], tmp_path: Path
) -> None:
    launch = Launch(tmp_path / "run", argv, "raise:1:4")
    assert launch.wait() == 1
    first = min(failures(launch.folder).values(), key=lambda failure: failure["time"])
    assert (first["rank"], first["step"], first["error"]) == (1, 4, "RuntimeError: planted")
    assert first["host"] == socket.gethostname() and "in fail\n" in first["details"]
    assert "RuntimeError: planted" in launch.output


def assert_stops(launch: Launch, reasons: str) -> None:
    """After a request: a checkpoint within 10 s, of the same step on both ranks; then nothing is
    left."""
    launch.until(lambda: "stopped after" in launch.output, 10)
    launch.wait()
    step = ([*saved_steps(launch.folder), 0])[0]
    assert any(
        f"stopped after step {step} of {TOTAL} ({reason})" in launch.output
        for reason in reasons.split(" | ")
    )
    assert not failures(launch.folder) and not (launch.folder / "summary.json").exists()
    assert not (launch.folder / "lock").exists()


def to_runner(launch: Launch, number: int) -> None:
    launch.process.send_signal(number)


def to_launcher(launch: Launch, number: int) -> None:
    launch.find("deepspeed.launcher.launch")[0].send_signal(number)


def to_group(launch: Launch, number: int) -> None:
    os.killpg(launch.process.pid, number)


def to_one_rank(launch: Launch, number: int) -> None:
    launch.find("faulty.py")[1].send_signal(number)


def by_file(launch: Launch, number: int) -> None:
    (launch.folder / "stop").touch()


WAYS: dict[str, tuple[Callable[[Launch, int], None], int, str]] = {
    "kill the runner": (to_runner, signal.SIGKILL, "the launcher has ended"),
    "kill launch.py": (to_launcher, signal.SIGKILL, "SIGTERM | the launcher has ended"),
    "terminate launch.py": (to_launcher, signal.SIGTERM, "SIGTERM"),
    "terminate the group": (to_group, signal.SIGTERM, "SIGTERM | the launcher has ended"),
    "ctrl-c": (to_group, signal.SIGINT, "SIGINT | SIGTERM | the launcher has ended"),
    "terminate one rank": (to_one_rank, signal.SIGTERM, "SIGTERM"),
    "usr1 to one rank": (to_one_rank, signal.SIGUSR1, "SIGUSR1"),
    "stop file": (by_file, 0, "the file `stop`"),
}


@pytest.mark.slow
def test_every_stop_request_saves_and_the_run_resumes(
    argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for send, number, reasons in WAYS.values():
        before = steps_done(folder)
        launch = Launch(folder, argv, "slow:*:200")
        launch.until(lambda: steps_done(folder) >= before + 2)  # noqa: B023
        send(launch, number)
        assert_stops(launch, reasons)
    resume_to_the_same_end(folder, argv, whole)


@pytest.mark.slow
def test_signal_during_a_save_or_evaluation_tears_no_file(
    argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for during, signals in (
        ("startup", 1),
        ("startup", 2),
        ("first", 2),
        ("save", 1),
        ("save", 2),
        ("evaluation", 1),
    ):
        reached = tmp_path / f"reached-{during}"
        reached.unlink(missing_ok=True)
        launch = Launch(folder, argv, f"{during}:*:0")
        launch.until(reached.exists)
        for _ in range(signals):
            to_launcher(launch, signal.SIGTERM)
            time.sleep(0.3)
        assert_stops(launch, "SIGTERM")
    resume_to_the_same_end(folder, argv, whole)


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(argv: list[str], tmp_path: Path) -> None:
    launch = Launch(tmp_path / "run", argv, "first:*:0,slow:*:5000")
    launch.until((tmp_path / "reached-first").exists)
    for rank in launch.find("faulty.py"):
        rank.send_signal(signal.SIGINT)
    time.sleep(1.5)
    to_one_rank(launch, signal.SIGINT)
    assert launch.until(lambda: not launch.find("faulty.py"), 10) < 10
    assert (
        launch.wait() != 0
        and "rank 1: interrupted twice" in launch.output
        and not saved_steps(launch.folder)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "ranks"), [("lock", {0}), ("stop", {0})])
def test_stopped_or_locked_rank_is_ended(
    fault: str, ranks: set[int], argv: list[str], tmp_path: Path
) -> None:
    """Python's lock held by C code: faulthandler's timer ends it; SIGSTOP: the launcher does, 30 s
    after its peer ended."""
    launch = Launch(tmp_path / "run", [*argv, "--step-limit", "4"], f"{fault}:1:5")
    assert launch.wait(90) == 1
    assert_reported_by_the_watchdog(launch, ranks)
    assert ("Timeout (0:00:1" in launch.output) == (fault == "lock")


@pytest.mark.slow
def test_launcher_killed_during_imports_leaves_no_orphan(argv: list[str], tmp_path: Path) -> None:
    for send in (to_launcher, to_runner):
        launch = Launch(tmp_path / "run", argv)
        launch.until(lambda: len(launch.find("faulty.py")) == 2)  # noqa: B023
        time.sleep(0.3)
        send(launch, signal.SIGKILL)
        launch.until(lambda: not launch.alive(), 60)  # noqa: B023


@pytest.mark.slow
def test_run_starts_without_compiler_or_home_and_with_a_stale_lock(
    argv: list[str], tmp_path: Path
) -> None:
    extensions = tmp_path / "extensions"
    (extensions / "deepspeed_shm_comm").mkdir(parents=True)
    (extensions / "deepspeed_shm_comm" / "lock").touch()
    nowhere = "/proc/none"
    bare = {
        "CC": "false",
        "CXX": "false",
        "HOME": nowhere,
        "XDG_CACHE_HOME": nowhere,
        "TORCH_EXTENSIONS_DIR": str(extensions),
    }
    launch = Launch(tmp_path / "run", argv, environment=bare)
    assert launch.wait() == 0, launch.output


@pytest.mark.slow
def test_port_in_use_is_reported(argv: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch = Launch(tmp_path / "run", argv, port=port)
        assert launch.wait() == 2
    assert (
        f"--master_port must be a free port (got {port}" in launch.output
        and "Traceback" not in launch.output
    )
    assert not launch.folder.exists()


@pytest.mark.slow
def test_differing_ranks_are_refused(argv: list[str], tmp_path: Path) -> None:
    launch = Launch(tmp_path / "run", argv, "flags:1:--lr 0.06")
    assert launch.wait() == 2
    assert "rank 1" in launch.output and "--lr: 0.05, there 0.06" in launch.output
    assert not launch.folder.exists()
