"""The check of one image as a job of a worker process; it imports little, for each of them imports
it."""

from collections.abc import Sequence
from typing import NamedTuple

from fastdeit.data.checks.headers import check_header, has_header
from fastdeit.data.formats import check
from fastdeit.data.formats.check import ByteRange, Checked, ImageInfo

UNKNOWN = 0
"""Depth of the check of an image that was not looked at."""
BY_HEADER = 1
DECODED = 2
"""Depth of the check of a decoded image, and of one whose fault is known."""


class Job(NamedTuple):
    """An image to check."""

    place: ByteRange
    known: ImageInfo | None
    """Facts that hold if the image's header still has them."""
    decode: bool


def check_chunk(jobs: Sequence[Job]) -> list[tuple[Checked, int]]:
    """Return the facts or the fault of each image, and the depth of the check; 0: the known facts
    hold."""
    return [_check(job) for job in jobs]


def _check(job: Job) -> tuple[Checked, int]:
    if job.known and has_header(job.place, job.known):
        return job.known, 0
    if job.decode:
        return check.check_place(job.place), DECODED
    found, is_decoded = check_header(job.place)
    return found, DECODED if is_decoded else BY_HEADER
