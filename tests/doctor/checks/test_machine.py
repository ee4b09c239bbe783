"""Checks of the machine, each with the fault that it is for."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastdeit.doctor.checks import machine
from fastdeit.doctor.findings import GIB, Target

TARGET = Target()
GPUS = Target(gpus=8)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_another_system_than_linux_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_system(TARGET).status == "ok"
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    assert machine.check_system(TARGET).status == "broken"


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "150000 100000\n"},
        {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
    ],
    ids=["v2", "v1"],
)
def test_a_limit_of_the_cgroup_below_the_cores_is_a_warning(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(32)))
    finding = machine.check_cores(TARGET)
    assert finding.status == "warning"
    assert "the cgroup allows the time of 1.5" in finding.found
    assert "--num-workers 1" in finding.cure


@pytest.mark.parametrize("text", ["max 100000", "", "text", "0 0", "-1 100000"])
def test_no_limit_of_the_cgroup_is_none(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.read_cpu_limit() is None


@pytest.mark.parametrize(("cores", "status"), [(16, "warning"), (64, "ok")])
def test_few_cores_a_gpu_are_a_warning(
    cores: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(cores)))
    finding = machine.check_cores(GPUS)
    assert finding.status == status
    assert f"{cores // 8} a GPU" in finding.found


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    assert "2 a process" in machine.check_cores(TARGET).found


def test_little_memory_in_the_cgroup_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.check_memory(TARGET).status == "ok"
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    finding = machine.check_memory(TARGET)
    assert finding.status == "warning" and "the cgroup allows 3.0 GiB" in finding.found
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.check_memory(GPUS).status == "ok"


def test_no_shared_memory_and_little_of_it_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "missing")
    finding = machine.check_shared_memory(TARGET)
    assert finding.status == "warning" and "--shm-size" in finding.cure
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    space = SimpleNamespace(f_frsize=4096, f_blocks=2**14, f_bavail=2**14)
    monkeypatch.setattr(machine.os, "statvfs", lambda _: space)
    assert machine.check_shared_memory(TARGET).status == "ok"
    finding = machine.check_shared_memory(GPUS)
    assert finding.status == "warning" and "64 MiB" in finding.found


def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [256, 256]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: limits)
    finding = machine.check_open_files(TARGET)
    assert finding.status == "warning" and "ulimit -n 1024" in finding.cure
    limits[1] = resource.RLIM_INFINITY
    assert machine.check_open_files(TARGET).found == "256, up to unlimited"


def test_a_clock_in_the_past_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_clock(TARGET).status == "ok"
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    assert machine.check_clock(TARGET).status == "warning"


@pytest.mark.parametrize("text", ["UTF-8", "utf8", "ANSI_X3.4-1968"])
def test_an_encoding_of_ascii_is_a_warning(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda _: text)
    status = "warning" if text.startswith("ANSI") else "ok"
    assert machine.check_encoding(TARGET).status == status


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setenv("HF_HOME", str(file / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    finding = machine.check_caches(TARGET)
    assert finding.status == "warning"
    assert f"{file / 'hub'} cannot be written" in finding.found
    assert "set HF_HOME" in finding.cure and "set XDG_CACHE_HOME" in finding.cure
