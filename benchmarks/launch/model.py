"""The model of a start's time: the growth of its parts with the number of ranks."""

import math
from dataclasses import dataclass

ROLL_MESSAGES = 4
"""The messages of a rank in the roll call."""


@dataclass(frozen=True)
class Site:
    """Parameters of a cluster that this machine cannot show."""

    ranks_per_machine: int = 8
    hop_us: float = 30
    """The time of a message between two machines."""
    files_per_s: float = 20_000
    """The files that the shared file system opens for all machines together."""
    shared_mb_s: float = 2_000
    """The megabytes that it reads for all machines together."""
    checkpoint_mb: float = 342
    """The size of a checkpoint of DeiT-S, which a resumed run reads."""


@dataclass(frozen=True)
class Costs:
    """The measured costs of a start."""

    torch_s: float
    launcher_s: float
    imports_s: float
    files: float
    read_mb: float
    message_us: float
    """The cost of a message and its answer in the store of rank 0."""
    peer_us: float
    """The cost of joining a group, for each other rank."""
    gather_us: float
    """The cost of gathering objects, for each other rank."""
    vote_us: float
    """The cost of a vote on 16 ranks."""
    gathers: int
    """The number of gatherings and broadcasts of objects up to the first step."""
    votes: int
    """The number of votes up to the first step."""


def estimate(ranks: int, costs: Costs, site: Site) -> dict[str, float]:
    """Return the seconds of each part of a start on `ranks` ranks."""
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
