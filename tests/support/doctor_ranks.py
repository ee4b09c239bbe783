"""Work of the ranks of tests/doctor/test_examination.py: `fastdeit doctor` with few checks."""

import importlib
import os
import sys
from pathlib import Path

from fastdeit.doctor import examination
from fastdeit.doctor.checks.group import check_group
from fastdeit.doctor.findings import Target
from tests.support.ranks import run_fastdeit

CHECKED = ("variables", "import Pillow", "output folder")


def shorten_table(*names: str) -> None:
    """Leave the checks of these names in the table."""
    chosen = tuple(check for check in examination.CHECKS if check.name in names)
    examination.CHECKS = chosen  # type: ignore[misc]


def plant(folder: Path, module: str, source: str) -> None:
    """Write a package that is imported in place of an installed one, by this process's children."""
    package = folder / module
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(source)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def doctor(folder: Path, limit_s: float) -> int:
    """Run the command; rank 1 has another Pillow and a variable that slows it."""
    if os.environ["RANK"] == "1":
        plant(folder / "planted", "PIL", "__version__ = '11.0'")
        os.environ["NCCL_P2P_DISABLE"] = "1"
    return run_doctor(folder, limit_s, *CHECKED)


def run_doctor(folder: Path, limit_s: float, *names: str) -> int:
    """Run the command with the checks of these names."""
    shorten_table(*names)
    examination.GROUP = examination.CLEAN  # type: ignore[misc]  # imports torch in a child
    flags = ["--quick", "--output-dir", str(folder), "--startup-limit", str(limit_s)]
    return run_fastdeit(["doctor", *flags])


def doctor_without_rank1(folder: Path, limit_s: float) -> int:
    """Run the command on rank 0 alone."""
    return 0 if os.environ["RANK"] == "1" else run_doctor(folder, limit_s, "system")


def doctor_without_torch(folder: Path, limit_s: float) -> int:
    """Run the command on two ranks, of which rank 1 has a torch that cannot be imported."""
    if os.environ["RANK"] == "0":
        return run_doctor(folder, limit_s, "system")
    examination.SLOWER_S = 1.0
    plant(folder / "planted", "torch", "raise ImportError('no libcudart')")
    return run_doctor(folder, limit_s, "import torch")


def group(folder: Path) -> int:
    """Join the group, and write what each rank finds."""
    host = folder / f"scratch-{os.environ['RANK']}"
    finding = check_group(Target(scratch=str(host)))
    (folder / f"found-{os.environ['RANK']}").write_text(f"{finding.status}: {finding.found}")
    return 0
