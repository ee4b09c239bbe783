"""The peak memory that a run logs: never lower than before."""

from pathlib import Path

import pytest
import torch

from fastdeit.training.memory import peak
from fastdeit.training.memory.peak import read_peak_memory


def test_peak_grows_with_what_the_process_held() -> None:
    before = read_peak_memory(torch.device("cpu"))["memory_gb"]
    held = bytearray(200_000_000)
    held[::4096] = bytes(len(held[::4096]))
    wants = max(before, 0.2)
    assert read_peak_memory(torch.device("cpu"))["memory_gb"] >= wants
    del held
    assert read_peak_memory(torch.device("cpu"))["memory_gb"] >= wants


def test_a_system_that_does_not_report_it_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text("Name: python\n")
    assert peak._read_resident_peak(tmp_path / "status") is None
    assert peak._read_resident_peak(tmp_path / "absent") is None
    monkeypatch.setattr(peak, "_read_resident_peak", lambda: None)
    assert read_peak_memory(torch.device("cpu")) == {}


@pytest.mark.gpu
def test_peak_of_a_gpu_is_that_of_its_tensors() -> None:
    device = torch.device("cuda")
    held = torch.empty(300_000_000, dtype=torch.uint8, device=device)
    assert read_peak_memory(device)["memory_gb"] >= 0.3
    del held
