"""Checks of the GPUs, with drivers of several kinds in place of one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.doctor.checks import gpu
from fastdeit.doctor.findings import Finding, Target

GPUS = Target(gpus=1)
H100 = "NVIDIA H100 80GB HBM3, 570.86.15, 81559 MiB, 9.0"
A100 = "NVIDIA A100-SXM4-40GB, 570.86.15, 40960 MiB, 8.0"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that installs an nvidia-smi with an output and an exit code."""

    def install(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def check_driver() -> Finding:
    return gpu.check_driver(Target())


def test_equal_gpus_are_counted_and_different_ones_a_warning(driver: Any) -> None:
    driver(f"{H100}\n{H100}")
    assert gpu.count_gpus() == 2
    finding = check_driver()
    assert finding.status == "ok" and finding.found.startswith("2 x NVIDIA H100 80GB HBM3, ")
    driver(f"{H100}\n{A100}")
    assert check_driver().status == "warning"


def test_a_driver_that_fails_is_broken_with_its_message(driver: Any) -> None:
    driver("Failed to initialize NVML: Driver/library version mismatch", 18)
    assert gpu.count_gpus() == 0
    finding = check_driver()
    assert finding.status == "broken" and "version mismatch" in finding.found


def test_a_driver_without_gpus_is_broken(driver: Any) -> None:
    driver("")
    assert check_driver().found == "nvidia-smi lists no GPU"


def test_a_driver_that_hangs_is_broken(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(f"{H100}\nEOF\nexec sleep 1000\ncat <<'EOF'")
    monkeypatch.setattr(gpu, "_QUERY_S", 0.2)
    assert "gives no answer" in check_driver().found
    assert gpu.count_gpus() == 0


def test_a_gpu_without_its_tools_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(gpu, "_list_devices", lambda: [])
    assert check_driver().status == "not applicable"
    monkeypatch.setattr(gpu, "_list_devices", lambda: ["nvidia0", "nvidiactl"])
    finding = check_driver()
    assert finding.status == "warning" and "--gpus all" in finding.cure


def test_torch_for_the_cpu_beside_a_gpu_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu.check_cuda(GPUS).status == "broken"
    assert gpu.check_cuda(Target()).status == "not applicable"


def test_an_old_driver_is_broken_and_hidden_gpus_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "read_driver_cuda", lambda: (12, 4))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = gpu.check_cuda(GPUS)
    assert finding.status == "broken" and "needs CUDA 13.0, the driver has 12.4" in finding.found
    for value, status in (("", "warning"), ("-1", "warning"), ("1", "broken"), ("0,1", "broken")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert gpu.check_cuda(GPUS).status == status


@pytest.mark.parametrize(
    ("capability", "status"), [((9, 0), "ok"), ((7, 5), "warning"), ((5, 2), "broken")]
)
def test_a_gpu_that_torch_has_no_code_for_is_broken(
    capability: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    assert gpu.check_cuda(GPUS).status == status


def test_two_builds_of_dali_none_and_one_for_a_newer_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = [("nvidia-nvimgcodec-cu12", "0.9"), ("nvidia-nvjpeg-cu12", "12.4")]
    builds = [("nvidia-dali-cuda130", "2.4.0")]
    monkeypatch.setattr(gpu, "_installed", lambda: builds + libraries)
    monkeypatch.setattr(gpu, "read_driver_cuda", lambda: (12, 4))
    assert gpu.check_dali(Target()).status == "ok"
    finding = gpu.check_dali(GPUS)
    assert finding.status == "warning" and "nvidia-dali-cuda120" in finding.cure
    builds.insert(0, ("nvidia-dali-cuda120", "2.4.0"))
    assert "two builds overwrite each other" in gpu.check_dali(Target()).found
    libraries.clear()
    assert "no nvidia-nvimgcodec" in gpu.check_dali(Target()).found
    builds.clear()
    assert gpu.check_dali(Target()).status == "broken"


def test_each_rank_sees_one_gpu_of_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.show_one_gpu(3, 4) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert gpu.show_one_gpu(0, 0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    assert gpu.show_one_gpu(1, 8) == {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}
    assert gpu.show_one_gpu(2, 8) == {}


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_fit() -> None:
    target = Target(gpus=gpu.count_gpus())
    assert gpu.check_driver(target).status == "ok"
    assert gpu.check_cuda(target).status == "ok"
    assert gpu.read_driver_cuda() > (0, 0)


def test_a_package_without_a_name_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.dist-info").mkdir()  # as an install that was cut leaves one
    (tmp_path / "broken.dist-info" / "METADATA").write_text("Version: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torch" in dict(gpu._installed())
