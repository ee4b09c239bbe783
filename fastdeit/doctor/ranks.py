"""The meeting of the ranks of a launch, at which they share their findings."""

import datetime
import json
import os
import time
from typing import Any

_POLL_S = 0.1


class Meeting:
    """A store that all ranks of a launch can reach: that of rank 0, or of torchrun.

    limit_s: the seconds that rank 0 may take to start. Attributes: rank. Raises RuntimeError if the
    store cannot be reached, or its port is in use.
    """

    def __init__(self, limit_s: float) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self.rank = int(os.environ["RANK"])
        self._waited_for = list(range(int(os.environ["WORLD_SIZE"])))
        has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=self.rank == 0 and not has_agent,
            timeout=datetime.timedelta(seconds=limit_s),
            wait_for_workers=False,
        )
        attempt = os.environ.get(
            "TORCHELASTIC_RESTART_COUNT", "0"
        )  # torchrun has one store for all
        self._store = PrefixStore(f"fastdeit/doctor/{attempt}", store)

    def give(self, topic: str, value: Any) -> None:
        """Store this rank's value, as JSON, without a wait."""
        self._store.set(f"{topic}/{self.rank}", json.dumps(value))

    def gather(self, topic: str, value: Any, limit_s: float) -> dict[int, Any]:
        """Store this rank's value, and return, by rank, the values that all ranks give within
        `limit_s` seconds; later calls do not wait for a rank that was too late."""
        self.give(topic, value)
        deadline = time.monotonic() + limit_s
        found = {}
        for rank in self._waited_for:
            key = f"{topic}/{rank}"
            while not (is_here := self._store.check([key])) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if is_here:
                found[rank] = json.loads(self._store.get(key))
        self._waited_for = list(found)
        return found
