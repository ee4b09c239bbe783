"""Checks of the installed packages: their versions and their imports."""

import functools
import importlib
import importlib.metadata
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fastdeit
from fastdeit.doctor.findings import Check, Finding, Target, absent, fail, good, warn, warn_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PROJECT = "fastdeit"
_TESTED = Path(fastdeit.__file__).parents[1] / "constraints.txt"
"""The file of the tested versions, which only a checkout has."""
_DALI = "nvidia-dali-cuda"
_CUDAS = (120, 130)
_SLOW_S = 20.0  # an import that takes longer is probably from a network's disk
_SHOWN = 5
_IMPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("torch", ()),
    "torchvision": ("torchvision", ("torch",)),
    "timm": ("timm", ("torch", "torchvision")),
    "triton": ("triton", ()),
    "DALI": ("nvidia.dali", ()),
    "DeepSpeed": ("deepspeed", ("torch",)),
    "numba": ("numba", ()),
    "pyarrow": ("pyarrow", ()),
    "Pillow": ("PIL", ()),
}
"""The module of each large library, and the libraries that it imports."""


def check_versions(target: Target) -> Finding:
    """Compare the installed versions with the ranges that setup.py allows, and with the tested
    ones."""
    from packaging.requirements import Requirement

    allowed = [Requirement(line) for line in _list_requirements()]
    tested = [Requirement(line) for line in _list_tested()]
    if not allowed:
        return absent(f"{_PROJECT} runs from a checkout that pip has not installed")
    needed = [one for one in allowed if _applies(one)]
    bad = [line for one in needed if (line := _describe_fault(one))]
    if bad:
        return fail(
            "; ".join(bad), "pip install -c constraints.txt -e . installs the tested versions"
        )
    names = {one.name for one in needed}
    others = [line for one in tested if one.name in names and (line := _describe_fault(one))]
    found = f"{len(needed)} packages in the allowed ranges"
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        found += f"; not the tested version: {', '.join(others[:_SHOWN])}{more}"
    return good(found)


def _applies(requirement: "Requirement") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _list_requirements() -> list[str]:
    try:
        return importlib.metadata.requires(_PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _list_tested() -> list[str]:
    """Return the lines of constraints.txt; none without a checkout."""
    try:
        lines = _TESTED.read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _describe_fault(requirement: "Requirement") -> str:
    """Return a text on an installed version that is missing or not allowed, or ""."""
    version = _find_version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    if not _applies(requirement) or requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} (not {requirement.specifier})"


def _find_version(name: str) -> str | None:
    """Return the installed version of a package, None if it is missing; DALI may be a build for
    another version of CUDA."""
    names = [name]
    if name.startswith(_DALI):
        names += [f"{_DALI}{cuda}" for cuda in _CUDAS]
    for one in names:
        try:
            return importlib.metadata.version(one)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def list_imports() -> list[Check]:
    """Return one check for the import of each large library, so that a crash names the library."""
    return [
        Check(
            f"import {name}",
            functools.partial(check_import, name=name, module=module),
            needs,
            limit_s=120,
            each_rank=True,
            differs="broken",
        )
        for name, (module, needs) in _IMPORTED.items()
    ]


def check_import(target: Target, *, name: str, module: str) -> Finding:
    """Import a library; one that cannot be imported is broken."""
    began = time.monotonic()
    try:
        library = importlib.import_module(module)
    # a broken library may raise any error during the import
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return fail(reason[:300], f"reinstall {name} in the version of constraints.txt")
    seconds = time.monotonic() - began
    found = f"version {getattr(library, '__version__', 'unknown')}"
    if seconds > _SLOW_S:
        slow = f"{found}, in {seconds:.0f} s"
        return warn(slow, "install the environment on a local disk, not a network's")
    return good(found)


def check_twins(target: Target) -> Finding:
    """Look for two packages that install the same module, as one overwrites files of the other."""
    owners = importlib.metadata.packages_distributions()
    faults = []
    for module, cure in {
        "triton": "uninstall all, then install the one that torch requires",
        "PIL": "uninstall both, then install pillow alone: Pillow-SIMD's pixels are its own",
        "deepspeed": "uninstall all, then install deepspeed",
    }.items():
        names = sorted(set(owners.get(module, ())))
        if len(names) > 1:
            faults.append((f"{' and '.join(names)} both install {module}", cure))
    return warn_of("" if faults else "no module has two owners", faults)


def check_pillow(target: Target) -> Finding:
    """Check Pillow's JPEG decoder: the pixels of fastdeit and timm are those of libjpeg-turbo."""
    import PIL
    from PIL import features

    found = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
    if ".post" in PIL.__version__:
        return warn(f"{found}: Pillow-SIMD", "install pillow: the SIMD fork computes other pixels")
    if not features.check("libjpeg_turbo"):
        return warn(f"Pillow {PIL.__version__} without libjpeg-turbo", "install Pillow's own wheel")
    return good(found)
