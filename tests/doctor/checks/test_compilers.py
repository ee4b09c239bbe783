"""Checks of Triton, of a C compiler and of DeepSpeed's operators."""

from pathlib import Path

import pytest
import torch

from fastdeit.doctor.checks import compilers
from fastdeit.doctor.findings import Target
from fastdeit.kernels import gelu


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    return Target(scratch=str(tmp_path / "scratch"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for the interpreter")
def test_the_interpreter_runs_a_kernel(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    finding = compilers.check_triton(target)
    assert finding.status == "ok" and "runs a kernel in the interpreter" in finding.found


def test_a_kernel_with_wrong_results_is_broken(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gelu, "gelu_reference", lambda x: x)
    assert compilers.check_triton(target).status == "broken"


def test_a_kernel_that_cannot_start_names_the_missing_compiler(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(x: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gelu, "gelu", fault)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    finding = compilers.check_triton(target)
    assert finding.status == "broken" and "install gcc" in finding.cure


@pytest.mark.gpu
def test_the_gpu_runs_a_kernel(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert compilers.check_triton(target).status == "ok"


def test_no_compiler_is_broken_on_a_gpu_and_a_warning_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compilers.check_compiler(Target(gpus=1)).status == "broken"
    assert compilers.check_compiler(Target()).status == "warning"
    monkeypatch.setenv("CC", "sh")
    assert compilers.check_compiler(Target()).status == "ok"


def test_the_lock_of_a_killed_build_is_named(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert compilers.check_deepspeed(target).status == "ok"
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    finding = compilers.check_deepspeed(target)
    assert finding.status == "warning" and f"rm {lock}" in finding.cure
