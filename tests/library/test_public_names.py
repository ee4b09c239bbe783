"""The names of `import fastdeit`: found when they are used, and known to editors."""

import ast
import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastdeit
from tests.support.launching import ROOT


def test_every_name_is_found_and_documented() -> None:
    for name in fastdeit._PLACES:
        value = getattr(fastdeit, name)
        assert name in dir(fastdeit) and (value.__doc__ or name == "RECIPES")


def test_editors_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "fastdeit" / "__init__.py").read_text())
    seen = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastdeit.")
        for alias in node.names
        if alias.asname  # what type checkers take as offered
    }
    places = {}
    for name, place in fastdeit._PLACES.items():
        module, _, original = place.partition(":")
        places[name] = f"fastdeit.{module}:{original or name}"
    assert seen == places


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="^module 'fastdeit' has no attribute 'creat_loader'$"):
        fastdeit.creat_loader  # noqa: B018


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import fastdeit, sys\n"
        "fastdeit.Plan(fastdeit.PlanSpec(repeats=1), [[8, 8]] * 4)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_a_process_without_an_account_has_a_name_and_a_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch asks for the name when it is imported; a container may run as any user id."""

    def fail(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", fail)
    fastdeit._name_user()
    assert getpass.getuser().startswith("uid-") and Path.home() == Path("/")
    monkeypatch.setenv("USER", "someone")
    fastdeit._name_user()
    assert getpass.getuser() == "someone"


def test_compiled_code_is_in_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a folder of /tmp that another user could have made."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for chosen in ("/chosen", str(tmp_path / "fastdeit" / "torchinductor")):
        monkeypatch.setenv(name, "/chosen")
        if chosen != "/chosen":
            monkeypatch.delenv(name)
        fastdeit._place_compiled_code()
        assert os.environ[name] == chosen
    monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setattr(os, "access", lambda *_: False)
    fastdeit._place_compiled_code()
    assert name not in os.environ
