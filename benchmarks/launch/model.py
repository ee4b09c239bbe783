"""The model of a start's time: which parts grow with the ranks, and how."""

import math
from dataclasses import dataclass

ROLL_MESSAGES = 4
"""Of a rank, in the roll call."""


@dataclass(frozen=True)
class Site:
    """Parameters of a cluster that this machine cannot show."""

    ranks_per_machine: int = 8
    hop_us: float = 30
    """Of a message between two machines."""
    files_per_s: float = 20_000
    """Files that the shared file system opens for all machines together."""
    shared_mb_s: float = 2_000
    """Megabytes that it reads for all machines together."""
    checkpoint_mb: float = 342
    """DeiT-S, which a resumed run reads."""


@dataclass(frozen=True)
class Costs:
    """The measured costs of a start."""

    torch_s: float
    launcher_s: float
    imports_s: float
    files: float
    read_mb: float
    message_us: float
    """Of the store of rank 0 for a message and its answer."""
    peer_us: float
    """Of joining a group, for each other rank."""
    gather_us: float
    """Of gathering objects, for each other rank."""
    vote_us: float
    """Of a vote on 16 ranks."""
    gathers: int
    """Gatherings and broadcasts of objects up to the first step."""
    votes: int
    """Votes up to the first step."""


def estimate(ranks: int, costs: Costs, site: Site) -> dict[str, float]:
    """Return the seconds of each part of a start on so many ranks."""
    machines = max(1, ranks // site.ranks_per_machine)
    peers = ranks - 1
    rounds = 2 * math.ceil(math.log2(ranks))
    store_s = 1e-6 * costs.message_us
    reads = machines * (costs.files / site.files_per_s + costs.read_mb / site.shared_mb_s)
    return {
        "launcher": costs.launcher_s,
        "imports": costs.imports_s,
        "files of the imports": reads,
        "roll call": ROLL_MESSAGES * (ranks * store_s + 1e-6 * site.hop_us),
        # every rank asks for the address of every other one, and waits for it: two messages
        "gloo group": 2 * ranks * peers * store_s + peers * 1e-6 * costs.peer_us,
        "votes": costs.votes * 1e-6 * (costs.vote_us + rounds * site.hop_us),
        "gatherings": costs.gathers * peers * 1e-6 * (costs.gather_us + 2 * site.hop_us),
        "checkpoint": machines * site.checkpoint_mb / site.shared_mb_s,
    }
