"""A form or a launch of an op in place of that of the table of launches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastdeit.kernels import launch_configs


@contextmanager
def use_form(op: str, form: str, launch: Mapping[str, int] | None = None) -> Iterator[None]:
    """Run an op in one of its `launch_configs.FORMS`, and its kernels with the numbers of `launch`,
    in place of those of the table."""
    find = launch_configs._find_row

    def find_row(name: str, arch: int, bits: int, D: int, N: int) -> dict:
        row = find(name, arch, bits, D, N)
        if name == op:
            return row | {"form": form}
        return row | {"launch": row["launch"] | launch} if launch and name.startswith(op) else row

    launch_configs._find_row = find_row  # type: ignore[assignment]
    try:
        yield
    finally:
        launch_configs._find_row = find
