"""Members of tar files of unknown origin, with headers of limited size, none stored in memory."""

import tarfile
from collections.abc import Iterator

_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_HEADER = 2**16  # bytes of a member's extended header: names are up to 4,096 long


class BoundedMember(tarfile.TarInfo):
    """A member of a tar file with short extended headers: tarfile would read any length that a
    shard claims. Raises tarfile.ReadError for a longer one."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {_MAX_HEADER:,}")
        # tarfile's source intends subclasses to override it
        return super()._proc_member(tar)  # type: ignore[misc]


def iterate_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end, or up to the place where the file is cut short."""
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError):
            return
        # a negative size would lead to an earlier member, and to an endless loop
        if member is None or tar.offset <= member.offset:
            return
        # tarfile stores all of them, and there may be millions
        tar.members.clear()  # type: ignore[attr-defined]
        yield member
