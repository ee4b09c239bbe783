"""Requests to stop one process: signals, the time limit, the death of the launcher."""

import os
import signal
import time

import pytest

from fastdeit.config.parse import parse_time_limit
from fastdeit.config.schema import RunConfig
from fastdeit.reliability import stop_requests
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.stop_requests import REASONS, StopRequests
from tests.support.waiting import wait_until


class Aborts(list[tuple[int, str]]):
    def __call__(self, code: int, reason: str) -> None:
        self.append((code, reason))


def test_second_interrupt_aborts_but_an_echo_of_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop_requests, "_ECHO_S", 0.3)
    aborts = Aborts()
    requests = StopRequests(None, None, None, aborts)
    requests.start()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert REASONS[requests.reason] == "SIGINT" and not aborts
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    assert not aborts
    os.kill(os.getpid(), signal.SIGINT)
    wait_until(lambda: aborts == [(130, "interrupted twice")])
    requests.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_are_requests(number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so would we
    requests = StopRequests(None, None, None, Aborts())
    requests.start()
    os.kill(os.getpid(), number)
    wait_until(lambda: REASONS[requests.reason] == signal.Signals(number).name)
    requests.close()
    signal.signal(number, before)


def test_a_weaker_reason_does_not_replace_a_stronger_one() -> None:
    requests = StopRequests(None, None, None, Aborts())
    for reason in ("--time-limit", "SIGTERM", "the file `stop`"):
        requests.request(reason)
    assert REASONS[requests.reason] == "SIGTERM"
    requests.close()


def test_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = StopRequests(None, None, None, Aborts())
    requests.start()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.1)
    assert requests.reason == 0
    requests.close()
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_dead_launcher_is_a_request_and_later_an_abort() -> None:
    class Gone(Launcher):
        def has_died(self) -> bool:
            return True

    aborts = Aborts()
    requests = StopRequests(None, None, Gone(), aborts, orphan_limit_s=0.2, poll_s=0.02)
    requests.start()
    wait_until(lambda: REASONS[requests.reason] == "the launcher has ended")
    assert not aborts
    wait_until(lambda: aborts)
    assert aborts[0] == (1, "the launcher ended 0 s ago")
    requests.close()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30:15", 95415)],
)
def test_time_limit_has_the_forms_of_slurm(text: str, seconds: int) -> None:
    assert parse_time_limit(text) == seconds and parse_time_limit("") is None


@pytest.mark.parametrize("text", ["x", "1:2:3:4", "-1", "1-", "1.5", "2h"])
def test_other_form_of_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time-limit must be"):
        RunConfig(time_limit=text).check()
