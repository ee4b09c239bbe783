"""DeepSpeed's launchers on several machines: lost, stopped and missing ones; and Slurm's script."""

import functools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.runs.train import train_command
from fastdeit.data.indexing import build_index
from fastdeit.distributed import collectives
from fastdeit.distributed import world as distributed
from fastdeit.distributed.collectives import first_on_rank0
from fastdeit.distributed.world import init_distributed
from fastdeit.run import identity
from fastdeit.run.identity import check_same_images
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, ROOT, Launch, steps_done
from tests.support.machines import Machine, connected_machines, launch_on
from tests.support.run_folders import assert_same_numbers, failures_of, newest_step
from tests.support.sbatch import submit

pytestmark = pytest.mark.usefixtures("kill_launched_runs")
TOTAL = 20  # steps
SIZES = ["--batch-size", "16", "--epochs", str(TOTAL), "--save-steps", "3"]
TWO_EACH = (2, 2, 2, 2)
SLOW = "slow:*:200"
Machines = tuple[Machine, ...]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with connected_machines(4) as network:
        yield network.machines


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_shapes(tmp_path_factory.mktemp("machines") / "data")
    return ["--data-path", str(data), *FLAGS, *SIZES]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, to which nothing happened."""
    init_distributed()
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    return folder


def until_step(launches: Sequence[Launch], step: int) -> None:
    launches[0].until(lambda: steps_done(launches[0].folder) >= step, 300)


def ends(launches: Sequence[Launch], limit_s: float = 150) -> list[int]:
    """The launchers' exit codes, when no process of the run is left."""
    codes = [launch.process.wait(limit_s) for launch in launches]
    launches[0].until(lambda: not launches[0].alive(), 35)
    return codes


def output(launches: Sequence[Launch]) -> str:
    return "\n".join(launch.output for launch in launches)


@pytest.mark.slow
def test_lost_machine_ends_the_run_and_the_other_resumes_alone(
    machines: Machines, argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    launches = launch_on(machines[:2], (1, 1), folder, argv, SLOW)
    until_step(launches, 7)
    machines[1].kill()
    codes = ends(launches)
    assert codes[0] != 0, output(launches)
    failure = failures_of(folder)[0]
    assert failure["host"] == machines[0].name and failure["step"] >= 7, failure
    assert "onnection" in failure["error"], failure
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert_same_numbers(folder, whole)


def until_saved(launches: Sequence[Launch]) -> None:
    """Wait until a checkpoint is there that was not when this was called."""
    checkpoints = launches[0].folder / "checkpoints"
    before = set(list_checkpoints(checkpoints))
    launches[0].until(lambda: set(list_checkpoints(checkpoints)) - before, 300)


def find_on(machine: Machine, launch: Launch, script: str) -> psutil.Process:
    """The first process on the machine that runs the script."""
    there = {process.pid for process in machine.processes()}
    return next(process for process in launch.find(script) if process.pid in there)


@pytest.mark.slow
def test_whatever_is_killed_on_one_of_four_machines_ends_all_and_the_run_resumes(
    machines: Machines, argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for victim in ("faulty.py", "deepspeed.launcher.launch", "deepspeed.launcher.runner", ""):
        launches = launch_on(machines, TWO_EACH, folder, argv, SLOW)
        until_saved(launches)
        if victim:
            find_on(machines[2], launches[2], victim).kill()
        else:
            machines[2].kill()
        codes = ends(launches)
        newest_step(folder)  # verifies all checkpoints
        # a launcher that dies is a request to stop: all save and end well
        if victim.startswith("deepspeed"):
            assert f"stopped after step {newest_step(folder)} of {TOTAL}" in launches[0].output
        else:
            assert all(codes), output(launches)
            assert {failure["step"] for failure in failures_of(folder).values()} != {0}
    launches = launch_on(machines, TWO_EACH, folder, argv, "none")
    assert ends(launches) == [0] * 4, output(launches)
    assert_same_numbers(folder, whole)


@pytest.mark.slow
def test_stop_request_to_one_of_four_machines_stops_all_at_the_same_step(
    machines: Machines, argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for who, code in (
        ("deepspeed.launcher.launch", 1),
        ("deepspeed.launcher.runner", -signal.SIGTERM),
    ):
        before = steps_done(folder)
        launches = launch_on(machines, TWO_EACH, folder, argv, SLOW)
        until_step(launches, before + 3)
        find_on(machines[1], launches[1], who).terminate()
        assert ends(launches) == [0, code, 0, 0], output(launches)
        assert f"stopped after step {newest_step(folder)} of {TOTAL}" in launches[0].output
        assert not failures_of(folder)
        # the death of a runner is noticed within a second or two
        assert newest_step(folder) <= before + 12
    launches = launch_on(machines[:2], (1, 1), folder, argv, "none")
    assert ends(launches) == [0, 0], output(launches)
    assert_same_numbers(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_missing_node_times_out(
    present: int, machines: Machines, argv: list[str], tmp_path: Path
) -> None:
    limit = ["--startup-limit", "6"]
    run = tmp_path / "run"
    launches = launch_on(machines[:2], (1, 1), run, [*argv, *limit], "none", only=[present])
    assert ends(launches) == [1]
    assert f"rank {present}, after step 0, in startup: no progress for 6 s" in launches[0].output


def test_loopback_address_for_several_machines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian gives a host's own name 127.0.1.1."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for name, value in (
        ("MASTER_ADDR", "127.0.1.1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", ""),
    ):
        monkeypatch.setenv(name, value)
    distributed._choose_interface()
    monkeypatch.setenv("LOCAL_SIZE", "2")
    with pytest.raises(
        ValueError,
        match=r"--master_addr must be .*\(got 127\.0\.1\.1, which is 127\.0\.0\.1 on ",
    ):
        distributed._choose_interface()
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    distributed._choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize("what", ["a missing image", "another backend", "nothing"])
def test_machines_with_other_images_are_refused(
    what: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_distributed()
    here = Path(argv[1])
    there = shutil.copytree(here, tmp_path / "copy")
    if what == "a missing image":
        next(there.glob("train/*/*.jpg")).unlink()
    facts: list[dict[str, object]] = []
    monkeypatch.setattr(identity, "check_same_on_ranks", facts.append)
    for root, pixels in (
        (here, "exact"),
        (there, "native" if what == "another backend" else "exact"),
    ):
        check_same_images(build_index(root, "train"), build_index(root, "val"), pixels)
    monkeypatch.undo()
    monkeypatch.setattr(
        collectives, "on_every_rank", lambda action: [("a", facts[0]), ("b", facts[1])]
    )
    said = {
        "a missing image": "training images: 24, there 23",
        "another backend": "augmentation: 'exact', there 'native'",
    }
    if what in said:
        with pytest.raises(
            ValueError, match=rf"rank 1 \(b\) differs from rank 0 in .*{said[what]}"
        ):
            collectives.check_same_on_ranks(facts[0])
    else:
        collectives.check_same_on_ranks(facts[0])


def test_files_are_built_once_per_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0, then the first rank of each other machine, then the rest."""
    init_distributed()
    turns: dict[tuple[int, str], int] = {}
    for rank, local_rank in ((0, "0"), (1, "1"), (2, "0"), (3, "1")):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        done: list[int] = []

        def take_turn(action: Callable[[], object], done: list[int] = done) -> None:
            action()
            done.append(len(done))

        monkeypatch.setattr(collectives, "each_rank", take_turn)
        turns[rank, local_rank] = first_on_rank0(functools.partial(len, done))
    assert turns == {(0, "0"): 0, (1, "1"): 2, (2, "0"): 1, (3, "1"): 2}


@pytest.mark.slow
def test_slurm_run_resumes_after_its_time_limit(
    argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "fastdeit").symlink_to(ROOT / "fastdeit")
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    flags = [*argv, "--output-dir", str(folder)]
    job = submit(tmp_path, flags, python)
    began = time.monotonic()
    while steps_done(folder) < 4 and time.monotonic() - began < 90:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 0 and "(SIGUSR1)" in said and "queued again" in said, said
    job = submit(tmp_path, flags, python)
    said = job.communicate(timeout=90)[0]
    assert job.returncode == 0 and "resumed from" in said and "queued again" not in said, said
    assert_same_numbers(folder, whole)
