"""The meeting of the ranks of a launch: one that does not come is waited for once."""

import time

import pytest

from fastdeit.doctor.ranks import Meeting
from tests.support.launching import free_port


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in ({"RANK": "0", "WORLD_SIZE": "3"} | place).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return Meeting(10.0)


def test_a_rank_that_has_missed_a_topic_is_not_waited_for_again(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "rank", 2)
    for topic in ("first", "second"):
        meeting.give(topic, {"of": 2})
    monkeypatch.setattr(meeting, "rank", 0)
    assert meeting.gather("first", {"of": 0}, 0.1) == {0: {"of": 0}, 2: {"of": 2}}
    start = time.monotonic()
    assert meeting.gather("second", [0], 60.0) == {0: [0], 2: {"of": 2}}
    assert time.monotonic() - start < 20
