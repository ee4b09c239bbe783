"""The ranks of a launch: who is here, and what each has found."""

import datetime
import json
import os
import time
from typing import Any

_POLL_S = 0.1


class Meeting:
    """A store that all ranks of a launch reach: that of rank 0, or of torchrun.

    limit_s: how long rank 0 may take to be there. Raises RuntimeError if there is no way to it, or
    if its port is in use.
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
        """Store this rank's value (JSON), and do not wait."""
        self._store.set(f"{topic}/{self.rank}", json.dumps(value))

    def gather(self, topic: str, value: Any, limit_s: float) -> dict[int, Any]:
        """Store this rank's value, and return by rank those of all ranks that give one in time; who
        has missed it once is not waited for again."""
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
