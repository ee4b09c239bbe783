"""This process's place among all, from the variables of a launcher or of a batch script."""

import inspect
import logging

import pytest
from deepspeed.runtime.engine import DeepSpeedEngine

from fastdeit.commands.errors import one_line_errors
from fastdeit.distributed.world import import_deepspeed, init_distributed


def test_world_size_without_rank_is_that_of_a_batch_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No launcher started this process, so it is alone."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise ValueError("planted")
    assert end.value.code == 2 and capsys.readouterr().err == "fastdeit: error: planted\n"
    assert init_distributed().local_size == 1


def test_the_warning_of_our_own_optimizer_is_not_shown() -> None:
    logger = import_deepspeed().utils.logger
    source = inspect.getsource(DeepSpeedEngine._do_optimizer_sanity_check)
    assert "untested optimizer" in source
    for message, shown in (("an untested optimizer, proceed", False), ("another one", True)):
        assert bool(logger.filter(logging.makeLogRecord({"msg": message}))) == shown
