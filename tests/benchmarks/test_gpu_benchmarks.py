"""The parts of the GPU benchmarks that need no GPU: order of cases, selection of a kernel's form,
version and commit of a row, the result of a run.

.venv/bin/python -m pytest tests/benchmarks/test_gpu_benchmarks.py, about 6 s
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nvidia.dali
import pytest
import torch

from benchmarks import bench_runs, summary
from benchmarks.bench_step import schedule
from benchmarks.measuring import harness
from benchmarks.measuring.forms import use_form
from fastdeit.kernels import launch_configs
from fastdeit.kernels.attention import attention_reference, attention_triton
from fastdeit.kernels.attention_kernels import bwd
from fastdeit.kernels.launch_configs import find_launch
from fastdeit.storage.attempts import Attempt, add_attempt
from fastdeit.storage.run_folder import RunFolder
from tests.kernels.interpreter import DEVICE
from tests.support.launching import ROOT

WELL = {"exit_code": 0, "from_step": 40, "to_step": 80, "loss": 1.5}


def gradient(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, list[str]]:
    """Return a gradient of 198 tokens in fp16, and the ops whose launches were looked up."""
    requested: list[str] = []

    def find(op: str, *args: object, **sizes: object) -> launch_configs.Launch:
        requested.append(op)
        return launch_configs.find_launch(op, *args, **sizes)  # type: ignore[arg-type]

    monkeypatch.setattr(bwd, "find_launch", find)
    torch.manual_seed(0)
    qkv = torch.randn(1, 198, 3, 1, 64, device=DEVICE).half()
    grad = torch.randn(1, 198, 64, device=DEVICE).half()
    out, lse = attention_triton(qkv)
    found = bwd.attention_bwd_triton(qkv, out, lse, grad)
    leaf = qkv.float().requires_grad_()
    expected = torch.autograd.grad(attention_reference(leaf), leaf, grad.float())[0]
    torch.testing.assert_close(found.float(), expected, atol=4e-3, rtol=4e-3)
    return found, requested


def test_use_form_replaces_the_form_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ["attention_bwd_dq", "attention_bwd_dkdv"]
    assert gradient(monkeypatch)[1] == ["attention_bwd_whole"]
    with use_form("attention_bwd", "pair"):
        assert gradient(monkeypatch)[1] == pair
    with use_form("attention_bwd", "ahead"):
        assert gradient(monkeypatch)[1] == ["attention_bwd_ahead"]
    assert gradient(monkeypatch)[1] == ["attention_bwd_whole"]


def test_use_form_replaces_numbers_of_the_launch_alone() -> None:
    device = torch.device("cpu")
    before = find_launch("attention_bwd_dq", device, D=64, N=198)
    with use_form("attention_bwd", "pair", {"num_warps": 2}):
        assert find_launch("attention_bwd_dq", device, D=64, N=198) == before | {"num_warps": 2}
        assert find_launch("gelu_fwd", device) == find_launch("gelu_fwd", device, D=1)
        assert find_launch("gelu_fwd", device)["num_warps"] == 4
    assert find_launch("attention_bwd_dq", device, D=64, N=198) == before


def test_most_important_cases_run_first() -> None:
    order = [*schedule(torch.device("cuda"))]
    assert order[:2] == [("small", 256, "ours"), ("small", 256, "timm compiled")]
    assert order[2:4] == [("small", 1024, "ours"), ("small", 1024, "timm compiled")]
    assert len(order) == len(set(order)) == 45


def test_installed_returns_the_version_or_an_empty_string() -> None:
    assert harness.installed("dali") == nvidia.dali.__version__
    assert harness.installed("torch") == torch.__version__.partition("+")[0]
    assert harness.installed("no-such-package") == ""


@pytest.mark.parametrize("lacks", ["GIT_DIR", "PATH"])
def test_commit_without_git_comes_from_the_environment(
    lacks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(lacks, str(tmp_path))
    monkeypatch.delenv("FASTDEIT_COMMIT", raising=False)
    assert harness.commit() == "unknown"
    monkeypatch.setenv("FASTDEIT_COMMIT", "abc1234")
    assert harness.commit() == "abc1234"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"exit_code": 2}, "ended with 2"),
        ({"from_step": 0}, "began at step 0, the one before stopped at 40"),
        ({"to_step": 40}, "took no step after 40"),
        ({"loss": math.nan}, "has a loss of nan"),
    ],
)
def test_fault_of_describes_a_failed_start(change: dict[str, float], fault: str) -> None:
    assert bench_runs.fault_of(WELL | change, before=40) == fault


LAUNCH = (
    "import signal, sys, torch; from pathlib import Path; "
    "from benchmarks.bench_runs import launch; "
    # a shell starts what it runs in the background with SIGINT ignored
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
)


def test_interrupted_run_leaves_no_process(tmp_path: Path) -> None:
    stubborn, began = tmp_path / "stubborn", tmp_path / "began"
    # a process in the background ignores SIGINT
    stubborn.write_text(f"#!/usr/bin/env bash\nsleep 300 &\ntouch {began}\nwait\n")
    stubborn.chmod(0o755)
    code = f"{LAUNCH} sys.executable = {str(stubborn)!r}; launch('', Path(), torch.device('cpu'))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    while not began.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):  # a group without a member
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_outcome_describes_the_newest_start_alone(tmp_path: Path) -> None:
    for step in (0, 4):
        add_attempt(RunFolder(tmp_path), Attempt(step, 1, 8, 2, False, "bf16", "native", "mixed"))
    lines = [
        {"step": step, "loss": float(step), "images_per_s": 100.0 * step} for step in range(1, 10)
    ]
    lines.append({"step": 9, "model/both/top1": 50.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = bench_runs.outcome(RunFolder(tmp_path))
    expected = {"from_step": 4, "to_step": 9, "loss": 9.0, "top1": 50.0, "batch": 8}
    assert found | expected == found
    assert found["images_per_s"] == 800  # of the steps 7 to 9


def test_summary_shows_rows_without_a_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row: harness.Row = {"date": "today", "run": "digits", "exit_code": "0", "top1": ""}
    row["images_per_s"] = "1234.5"
    harness.write_rows(tmp_path / "runs.csv", [row], list(row))
    monkeypatch.setattr("sys.argv", ["summary", str(tmp_path)])
    summary.main()
    assert capsys.readouterr().out.split() == ["1,234/s", "run", "digits", "exit_code", "0"]
