"""Compiled networks: where their code is."""

import os
from pathlib import Path

import pytest
import torch

from fastdeit.models.execution import compilation
from fastdeit.models.execution.compilation import CACHE, compile_function
from tests.support.compiling import CountingBackend


def test_compiled_code_is_in_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", CountingBackend())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, "/chosen")
    compile_function(torch.neg)
    assert os.environ[CACHE] == "/chosen"
    monkeypatch.delenv(CACHE)
    compile_function(torch.neg)
    assert os.environ[CACHE] == str(tmp_path / "fastdeit" / "torchinductor")
