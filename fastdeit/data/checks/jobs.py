"""The check of one image as a job of a worker process; the module imports little, as each worker
process imports it."""

from collections.abc import Sequence
from typing import NamedTuple

from fastdeit.data.checks.headers import check_header, has_header
from fastdeit.data.formats import check
from fastdeit.data.formats.check import ByteRange, Checked, ImageInfo

UNKNOWN = 0
"""The depth of the check of an image that was not checked."""
BY_HEADER = 1
"""The depth of the check of an image whose header alone was checked."""
DECODED = 2
"""The depth of the check of a decoded image, and of one whose fault is known."""


class Job(NamedTuple):
    """An image to check."""

    place: ByteRange
    known: ImageInfo | None
    """Facts that are still right if the image's header has them."""
    decode: bool


def check_chunk(jobs: Sequence[Job]) -> list[tuple[Checked, int]]:
    """Return the facts or the fault of each image, and the depth of the check; 0: the known facts
    are still right."""
    return [_check(job) for job in jobs]


def _check(job: Job) -> tuple[Checked, int]:
    if job.known and has_header(job.place, job.known):
        return job.known, 0
    if job.decode:
        return check.check_place(job.place), DECODED
    found, is_decoded = check_header(job.place)
    return found, DECODED if is_decoded else BY_HEADER
