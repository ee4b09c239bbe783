"""Checks of packages: versions out of range, two owners of a module, Pillow-SIMD."""

import importlib.metadata
import re
from pathlib import Path

import PIL
import pytest
from PIL import features

from fastdeit.doctor.checks import packages
from fastdeit.doctor.findings import Finding, Target
from tests.support.launching import ROOT


def check_versions(monkeypatch: pytest.MonkeyPatch, requires: list[str]) -> Finding:
    monkeypatch.setattr(packages, "_list_requirements", lambda: requires)
    return packages.check_versions(Target())


def test_the_installed_versions_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = (ROOT / "setup.py").read_text()
    requires = re.findall(r'^        "((?:torch|triton|pillow)[^"]*)"', setup, re.MULTILINE)
    assert len(requires) >= 4
    finding = check_versions(monkeypatch, requires)
    assert finding.status == "ok"
    # newer versions than those of constraints.txt are named
    assert finding.found.startswith(f"{len(requires)} packages in the allowed ranges")


def test_a_version_out_of_range_or_missing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = check_versions(monkeypatch, ["pillow>=99", "no-such-package>=1", "numpy>=1"])
    assert finding.status == "broken"
    assert f"pillow {PIL.__version__} (not >=99)" in finding.found
    assert "no-such-package is missing" in finding.found and "numpy" not in finding.found


def test_dali_for_another_cuda_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        if name == "nvidia-dali-cuda130":
            return "2.4.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    assert check_versions(monkeypatch, ["nvidia-dali-cuda120>=2.4"]).status == "ok"
    assert check_versions(monkeypatch, ["nvidia-dali-cuda120>=2.5"]).status == "broken"


def test_extras_and_other_systems_are_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ['no-such-package; extra == "dev"', 'other; platform_system == "Windows"']
    assert check_versions(monkeypatch, [*others, "numpy"]).found.startswith("1 packages")


def test_a_version_that_was_not_tested_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\npillow==1.0\nnumpy==1; python_version < '3'\n")
    monkeypatch.setattr(packages, "_TESTED", constraints)
    finding = check_versions(monkeypatch, ["pillow", "numpy"])
    assert finding.status == "ok"
    assert finding.found.endswith(f"not the tested version: pillow {PIL.__version__} (not ==1.0)")


def test_a_checkout_that_is_not_installed_has_no_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", miss)
    assert packages.check_versions(Target()).status == "not applicable"


def test_a_module_with_two_owners_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"triton": ["triton", "pytorch-triton"], "PIL": ["pillow", "pillow"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    finding = packages.check_twins(Target())
    assert finding.status == "warning"
    assert finding.found == "pytorch-triton and triton both install triton"


def test_pillow_simd_and_a_pillow_without_turbo_are_warnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert packages.check_pillow(Target()).status == "ok"
    monkeypatch.setattr(PIL, "__version__", "9.5.0.post2")
    assert "Pillow-SIMD" in packages.check_pillow(Target()).found
    monkeypatch.setattr(PIL, "__version__", "12.0")
    monkeypatch.setattr(features, "check", lambda name: False)
    assert "without libjpeg-turbo" in packages.check_pillow(Target()).found


def test_a_slow_import_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_SLOW_S", -1.0)
    finding = packages.check_import(Target(), name="Pillow", module="PIL")
    assert finding.status == "warning" and "local disk" in finding.cure
