"""A model of the links between GPUs: how long a step's collectives take, and whether it pays to
reduce the gradient in pieces while the backward pass still runs.

A ring over R ranks sends (R - 1) / R of the bytes over each link, in R - 1 turns, each with the
latency of the slowest link (Thakur, Rabenseifner, Gropp 2005, "Optimization of collective
communication operations in MPICH", section 4). NCCL's rings cross the border of a machine once for
each of its network cards. So with one card per GPU several machines have nearly the bandwidth of
one machine, and the latency of the network. No GPU has shown these times yet.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """The links of a GPU within its machine, and its share of those between machines."""

    gpus_per_machine: int = 8
    """The GPUs of a machine."""
    inside_gbps: float = 360.0
    """Bandwidth within a machine, 10^9 bytes a second each way: 0.8 of an H100's NVLink, 450."""
    between_gbps: float = 45.0
    """Bandwidth of one GPU to other machines, 10^9 bytes a second each way: 0.9 of a network card
    of 400 Gbit/s."""
    inside_us: float = 2.0
    """Latency of a turn within a machine, in microseconds."""
    between_us: float = 8.0
    """Latency of a turn between machines, in microseconds."""

    def ring_ms(self, nbytes: float, ranks: int) -> float:
        """Return the milliseconds of a reduce-scatter or an all-gather of so many bytes."""
        if ranks == 1:
            return 0.0
        one_machine = ranks <= self.gpus_per_machine
        gbps = self.inside_gbps
        latency_us = self.inside_us
        if not one_machine:
            gbps = min(gbps, self.between_gbps * self.gpus_per_machine)
            latency_us = self.between_us
        return nbytes * (ranks - 1) / ranks / gbps / 1e6 + (ranks - 1) * latency_us / 1e3


MOST_PIECES = 8
"""The largest number of pieces of a gradient; a DeiT has twelve blocks."""


def exposed_ms(nbytes: float, ranks: int, pieces: int, backward_ms: float, links: Links) -> float:
    """Return the milliseconds of the gradient's reduction that the backward pass does not hide.

    nbytes: the size of the whole gradient, in fp32. The first piece is ready after 1 / pieces of
    the backward pass, the last one at its end; pieces are reduced one after the other.
    """
    of_piece = links.ring_ms(nbytes / pieces, ranks)
    done = 0.0
    for number in range(1, pieces + 1):
        ready = backward_ms * number / pieces
        done = max(done, ready) + of_piece
    return done - backward_ms


def choose_pieces(nbytes: float, ranks: int, backward_ms: float, links: Links) -> int:
    """Return the number of pieces of the gradient with which the least of its reduction is exposed;
    1: one piece, after the backward pass."""
    counts = range(1, MOST_PIECES + 1 if ranks > 1 else 2)
    return min(counts, key=lambda count: exposed_ms(nbytes, ranks, count, backward_ms, links))
