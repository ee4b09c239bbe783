"""Short waits of the mirror's tests."""

import pytest

from fastdeit.data.remote import retries
from fastdeit.mirror import lease, mirror


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WAITS_S", (0.001,) * 3)
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "_POLL_S", 0.1)
    monkeypatch.setattr(mirror, "INTERVAL_S", 0.05)
    monkeypatch.setattr(mirror, "SHARE", 0)
    monkeypatch.setattr(mirror, "RETRY_S", (0.05,))
    monkeypatch.setattr(mirror, "_POLL_S", 0.02)
