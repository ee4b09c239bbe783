"""The versions that can change a result, which all ranks must share. The module does not import
torch."""

import functools
import importlib.util
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import fastdeit

_MISSING = "not installed"


@functools.cache
def versions() -> dict[str, str]:
    """Return the version of Python and of every package that can change a result."""
    found = {"python": platform.python_version(), "dali": _dali_version()}
    found["fastdeit"] = fastdeit.__version__
    for name in ("torch", "timm", "deepspeed", "triton", "numpy"):
        found[name] = _installed_version(name)
    return found


def find_commit() -> str:
    """Return the short hash of the commit of the checkout that has this package, with +dirty if its
    files differ; "" without git or a checkout."""
    root = Path(fastdeit.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package may be in the checkout of another
        return ""
    try:
        head = _run_git(root, "rev-parse", "--short", "HEAD")
        changes = _run_git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+dirty" if changes else "")


def _run_git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _dali_version() -> str:
    """Return DALI's version from the name of its metadata's folder: the package has another name
    for each CUDA version (nvidia_dali_cuda130-2.4.0.dist-info), and the module imports slowly."""
    try:
        spec = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # nothing of nvidia's is installed
        spec = None
    if not spec or not spec.origin:
        return _MISSING
    folders = list(Path(spec.origin).parents[2].glob("nvidia_dali_*.dist-info"))
    if len(folders) == 1:
        return folders[0].name.removesuffix(".dist-info").partition("-")[2]
    from nvidia import dali  # built from source, or two packages

    return str(dali.__version__)


def _installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _MISSING
