"""Runs whose --output-dir is a URL: stopped or killed, then resumed on an empty machine."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdeit.commands.runs.train import train_command
from fastdeit.config.cli import parse_config
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import init_distributed
from fastdeit.library.training import train_run
from fastdeit.run import loop
from fastdeit.storage.run_folder import RunFolder
from tests.support.compare_runs import assert_same_run
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, ROOT, clean_environment, launcher_command
from tests.support.run_folders import assert_same_numbers
from tests.support.s3_server import BUCKET, S3Server, use_s3


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    init_distributed()
    data = write_shapes(tmp_path_factory.mktemp("mirrored") / "data")
    return ["--data-path", str(data), *FLAGS, "--epochs", "3", "--save-steps", "2"]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the working copies; without it the machine is an empty one."""
    monkeypatch.setenv("FASTDEIT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_run_resumes_on_another_machine_with_the_same_steps(
    argv: list[str], machines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/bucket/run"
    mirrored = [*argv, "--output-dir", url]
    assert train_command([*mirrored, "--stop-after-steps", "5"], "test") == 0
    assert f"uploaded to {url}" in capsys.readouterr().out
    shutil.rmtree(machines)
    assert train_command(mirrored, "test") == 0
    assert "after step 5 of 9" in capsys.readouterr().out
    whole = tmp_path / "whole"
    assert train_command([*argv, "--output-dir", str(whole)], "test") == 0
    copy = RunFolder.of(url).path
    assert_same_run(copy, whole)
    # the URL has the finished run, from which an empty machine shows the results
    bucket = tmp_path / "bucket" / "run"
    assert_same_run(bucket, whole)
    assert not (bucket / "lock").exists()
    shutil.rmtree(machines)
    capsys.readouterr()
    assert train_command(mirrored, "test") == 0
    assert "holds this run, finished" in capsys.readouterr().out
    # another run is not mixed with it
    with pytest.raises(SystemExit, match="2"):
        train_command([*mirrored, "--lr", "0.01"], "test")
    assert "--lr was 0.05, now 0.01" in capsys.readouterr().err


def test_a_run_that_fails_is_uploaded_before_it_ends(
    argv: list[str], machines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = parse_config([*argv, "--output-dir", f"file://{tmp_path}/bucket/run"], "test")
    with monkeypatch.context() as patch, pytest.raises(RunError, match="planted"):
        train_step = loop.train_step

        def fail(run, batches):  # type: ignore[no-untyped-def]
            if run.trainer.step == 4:
                raise RunError("planted")
            return train_step(run, batches)

        patch.setattr(loop, "train_step", fail)
        train_run(config)
    bucket = RunFolder(tmp_path / "bucket" / "run")
    assert (bucket.checkpoints / "step-00000004" / "manifest.json").is_file()
    assert not bucket.lock.exists()
    shutil.rmtree(machines)
    assert train_run(config)["steps"] == 9


@pytest.mark.parametrize(
    "url, reason",
    [
        ("https://host/run", "a folder, or the URL of a store that can be written to"),
        ("s3://key:secret@bucket/run", "without user, password and query in a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_any_work(
    url: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_command(["--recipe", "digits", "--output-dir", url], "test")
    shown = capsys.readouterr().err
    assert "--output-dir" in shown and reason in shown and "secret" not in shown


@pytest.mark.slow
def test_a_run_at_s3_that_is_killed_again_and_again_ends_like_one_that_is_not(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill two processes under the launcher at random moments; each start is on an empty
    machine."""
    times = random.Random(0)
    long = [*argv, "--epochs", "40", "--eval-epochs", "40"]
    command = [*launcher_command("--no_local_rank", "--num_accelerators", "2")]
    with S3Server().running() as server:
        use_s3(monkeypatch, server)

        def start(output: str) -> subprocess.Popen[bytes]:
            runs = {"FASTDEIT_RUNS": str(tmp_path / f"runs-{time.monotonic_ns()}")}
            words = [*command, str(ROOT / "fastdeit" / "train.py"), *long, "--output-dir", output]
            return subprocess.Popen(words, env=clean_environment() | runs, start_new_session=True)

        url = f"s3://{BUCKET}/runs/killed"
        for _ in range(4):
            process = start(url)
            time.sleep(times.uniform(12, 25))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert start(url).wait(600) == 0
        whole = tmp_path / "whole"
        assert start(str(whole)).wait(600) == 0
        copy = tmp_path / "copy"
        fetch = [sys.executable, "-m", "fastdeit", "fetch", url, str(copy)]
        subprocess.run(fetch, check=True, cwd=ROOT, env=clean_environment())
    assert_same_numbers(copy, whole)
