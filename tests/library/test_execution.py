"""The end of a run."""

from typing import Any
from unittest.mock import MagicMock

import pytest

from fastdeit.distributed.errors import RunError
from fastdeit.library import execution
from fastdeit.reliability.supervisor import StopAgreed


@pytest.mark.parametrize(
    ("end", "waits"),
    [(None, True), (StopAgreed("a request"), True), (RunError("no disk"), False)],
    ids=["finished", "stopped", "failed"],
)
def test_loaders_end_under_the_data_limit_but_a_failure_names_its_own_section(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None, waits: bool
) -> None:
    names = ("barrier", "use_backend", "open_folder", "record_graphs", "describe_run")
    for name in (*names, "evaluate_run", "write_results"):
        monkeypatch.setattr(execution, name, MagicMock())
    monkeypatch.setattr(execution, "train", MagicMock(side_effect=end))
    run: Any = MagicMock()
    try:
        execution.execute_run(run, [])
    except RunError:
        assert isinstance(end, RunError)
    calls = [name for name, *_ in run.mock_calls]
    assert ("supervisor.beat" in calls) == waits
    if waits:
        assert calls.index("supervisor.beat") < calls.index("data.train_loader.close")
