"""Soak test: a run that is killed at random, many times, ends as an undisturbed one."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints, step_of, verify_checkpoint
from fastdeit.storage.jsonl import read_json_lines
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, Launch, assert_lines_near

pytestmark = pytest.mark.usefixtures("kill_launched_runs")
TOTAL = 240  # steps, of which an attempt does a few before it is killed
GONE_S = 45  # the launcher gives a process 30 s
AT_THE_END = 4
"""Kills that wait for the last step, and hit what comes after it."""
HEADING = "\nschedule"
TWO = ("--num_accelerators", "2")


def kill_all(launch: Launch) -> None:
    for process in launch.alive():
        tell(process, signal.SIGKILL)


def tell(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def to(script: str, number: int, place: int = 0) -> Callable[[Launch], None]:
    """A signal to the process that runs `script`, the `place`-th if several do; waits for it to
    begin."""

    def send(launch: Launch) -> None:
        launch.until(lambda: launch.find(script) or launch.process.poll() is not None)
        for process in launch.find(script)[place : place + 1 or None]:
            tell(process, number)

    return send


def to_group(launch: Launch) -> None:
    os.killpg(launch.process.pid, signal.SIGTERM)


def to_runner(number: int) -> Callable[[Launch], None]:
    return lambda launch: launch.process.send_signal(number)


def lose_patience(launch: Launch) -> None:
    to_group(launch)
    time.sleep(0.3)
    kill_all(launch)


WAYS: dict[str, Callable[[Launch], None]] = {
    "kill rank 0": to("faulty.py", signal.SIGKILL),
    "kill the last rank": to("faulty.py", signal.SIGKILL, -1),
    "kill launch.py": to("deepspeed.launcher.launch", signal.SIGKILL),
    "kill the runner": to_runner(signal.SIGKILL),
    "kill all": kill_all,
    "terminate a rank": to("faulty.py", signal.SIGTERM, -1),
    "terminate launch.py": to("deepspeed.launcher.launch", signal.SIGTERM),
    "terminate the runner": to_runner(signal.SIGTERM),
    "terminate the group": to_group,
    "terminate the group, kill all": lose_patience,
}


@dataclass
class Soak:
    """A folder and the attempts at its run; metrics.jsonl, a line a step, tells how far each has
    come."""

    folder: Path
    argv: list[str]
    kills: Counter[str] = field(default_factory=Counter)
    steps_run: int = 0
    lost: list[int] = field(default_factory=list)
    """Steps that each kill cost."""

    def reached(self) -> int:
        return max(
            (line["step"] for line in read_json_lines(self.folder / "metrics.jsonl")), default=0
        )

    def saved(self) -> int:
        """The step of the newest checkpoint; that all are whole is asserted."""
        found = list_checkpoints(self.folder / "checkpoints")
        for path in found:
            verify_checkpoint(path)
        return step_of(found[0]) if found else 0

    def attempt(
        self, way: str, moment: str, delay_s: float, where: tuple[str, ...], flags: list[str]
    ) -> None:
        """Starts the command and ends it `delay_s` after a moment: `start`, `step` (its first) or
        `end` (the run's last)."""
        saved = self.saved()
        launch = Launch(self.folder, [*self.argv, *flags], "slow:*:150", where=where)
        awaited = {"step": saved, "end": TOTAL - 1}.get(moment)
        launch.until(
            lambda: (
                launch.process.poll() is not None or awaited is None or self._began(launch, awaited)
            )
        )
        time.sleep(delay_s)
        if launch.process.poll() is None:
            self.kills[f"{way}, {moment}"] += 1
            WAYS[way](launch)
        launch.process.wait(GONE_S)
        launch.until(lambda: not launch.alive(), GONE_S)
        self._count(launch, saved)

    def _began(self, launch: Launch, awaited: int) -> bool:
        """Return True if the run is beyond a step; what was written before, but not saved, is gone
        when the heading is there."""
        return HEADING in launch.output and self.reached() > awaited

    def _count(self, launch: Launch, saved: int) -> None:
        output, reached = launch.output, saved
        assert "checkpoint skipped" not in output and "fastdeit: error" not in output, output
        if HEADING in output:
            reached = max(saved, self.reached())
            assert (
                not saved or f"resumed from {self.folder}/checkpoints/step-{saved:08d}" in output
            ), output
        self.steps_run += reached - saved
        self.lost.append(max(0, reached - self.saved()))

    def finish(self) -> str:
        saved, launch = self.saved(), Launch(self.folder, self.argv)
        assert launch.wait(600) == 0, launch.output
        self.steps_run += max(0, TOTAL - saved)
        return launch.output

    def report(self, began: float) -> str:
        attempts = len(self.lost)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        kills, seconds = sum(self.kills.values()), time.monotonic() - began
        share = TOTAL / self.steps_run
        return (
            f"{kills} kills in {attempts} attempts, {seconds:.0f} s; "
            f"{TOTAL} steps kept of {self.steps_run} run ({share:.0%}), "
            f"{max(self.lost)} lost at most by one kill\n{kinds}"
        )


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_shapes(tmp_path_factory.mktemp("soak") / "data")
    often = ["--save-steps", "1", "--eval-epochs", "2", "--step-limit", "60"]
    return ["--data-path", str(data), *FLAGS, "--epochs", str(TOTAL // 3), *often]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    launch = Launch(folder, argv)
    assert launch.wait(600) == 0, launch.output
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "metrics.jsonl")


def soak(
    folder: Path, argv: list[str], kills: int, seed: int, draw: Callable[[random.Random], tuple]
) -> None:
    """Kills a run `kills` times and at its end a few times more, then lets it end; prints how much
    of its work was kept."""
    chance, run, began = random.Random(seed), Soak(folder, argv), time.monotonic()
    while (done := sum(run.kills.values())) < kills + AT_THE_END:
        way, moment = chance.choice(list(WAYS)), chance.choices(("start", "step"), (1, 4))[0]
        delay_s = chance.uniform(0.5, 9) if moment == "start" else chance.uniform(0, 0.6)
        if done >= kills:
            moment, delay_s = "end", chance.uniform(0, 0.5)
        elif run.saved() > TOTAL * (done + 1) / (kills + AT_THE_END):  # a fast machine
            moment, delay_s = "start", chance.uniform(0.5, 6)
        run.attempt(way, moment, delay_s, *draw(chance))
        if (folder / "summary.json").exists():  # the last kills may come too late
            break
    assert sum(run.kills.values()) >= kills, f"the run ended after {run.kills}"
    said = run.finish()
    assert "checkpoint skipped" not in said
    print(f"\n{run.report(began)}")


def assert_same_files(folder: Path, whole: Path) -> None:
    """A failure's file stays when it came after the run's last one."""
    mine, theirs = ({path.name for path in place.iterdir()} for place in (folder, whole))
    assert theirs <= mine and all(name.startswith("failure") for name in mine - theirs), mine


@pytest.mark.slow
def test_run_killed_fifty_times_ends_the_same(argv: list[str], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    soak(folder, argv, 50, 7, lambda chance: (TWO, []))
    for name in ("model.safetensors", "model_ema.safetensors"):
        mine, theirs = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(value, mine[key]) for key, value in theirs.items()), name
    assert_lines_near(lines(folder), lines(whole), 0)
    assert_same_files(folder, whole)


def draw_shape(chance: random.Random) -> tuple[tuple[str, ...], list[str]]:
    """One or two processes, a ZeRO stage, and a micro-batch."""
    stage, micro = chance.choice("0123"), chance.choice("024")
    return ("--num_accelerators", chance.choice("12")), [
        "--zero-stage",
        stage,
        "--micro-batch",
        micro,
    ]


@pytest.mark.slow
def test_run_killed_and_resumed_in_other_forms_ends_the_same(
    argv: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    soak(folder, argv, 20, 8, draw_shape)
    for name in ("model.safetensors", "model_ema.safetensors"):
        mine, theirs = load_file(folder / name), load_file(whole / name)
        for key, value in theirs.items():
            torch.testing.assert_close(
                mine[key], value, rtol=1e-5, atol=1e-5, msg=f"{key} of {name} differs"
            )
    assert_lines_near(lines(folder), lines(whole), 1e-5)
    assert_same_files(folder, whole)
