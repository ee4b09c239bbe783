"""Compiled code on disk: one process compiles and says so, the others load."""

import fcntl
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba import types

from fastdeit.data.augment import jit

SIGNATURE = types.int64(types.int64)


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Return a function whose compiled form no cache has yet, and which compiles quickly."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_PATIENCE_S", 0.0)
    file = tmp_path / "small.py"
    file.write_text("def double(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("small", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.double  # type: ignore[no-any-return]


def test_only_the_compilation_is_said(
    function: Callable[[int], int], caplog: pytest.LogCaptureFixture
) -> None:
    assert jit.make_callback(function, SIGNATURE).ctypes(4) == 8
    (note,) = caplog.messages
    assert note.startswith("compiling the augmentation for this machine")
    caplog.clear()
    loaded = jit.make_callback(function, SIGNATURE)
    assert loaded.cache_hits == 1 and loaded.ctypes(4) == 8
    assert not caplog.messages


def test_a_process_waits_for_the_one_that_compiles(
    function: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(jit.make_callback(function, SIGNATURE)))
    with monkeypatch.context() as patch, open(jit.__file__, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process that compiles
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        patch.setattr(jit, "_one_at_a_time", lambda: file)
        jit.make_callback(function, SIGNATURE)
    waiting.join(10)
    assert found[0].cache_hits == 1


def test_without_locks_a_process_compiles_by_itself(
    function: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert jit.make_callback(function, SIGNATURE).ctypes(4) == 8


def test_without_a_folder_a_process_compiles_by_itself(
    function: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function")

    monkeypatch.setattr(jit._Callback, "enable_caching", refuse)
    assert jit.make_callback(function, SIGNATURE).ctypes(4) == 8
