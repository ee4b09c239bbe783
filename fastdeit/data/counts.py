"""The counts of a data set, from its stored index alone."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from fastdeit.data.formats.listing import open_table, read_columns
from fastdeit.data.table import table_facts, table_places


class Counts(NamedTuple):
    """The number of images of a split, the bytes of all of them, and the number of classes."""

    images: int
    nbytes: int
    classes: int


def read_counts(root: Path, split: str) -> Counts | None:
    """Return the counts of a split that was indexed before, or None if no table can be read. The
    images may have changed since."""
    for place in table_places(root.absolute(), split, None):
        try:
            stored = open_table(place)
            facts = table_facts(stored.schema_arrow.empty_table())
            table = read_columns(stored, ["num_bytes", "fault"])
        except (OSError, ValueError, pa.ArrowException):
            continue
        if facts:
            good = table.filter(pc.is_null(table["fault"]))
            return Counts(len(good), pc.sum(good["num_bytes"]).as_py() or 0, len(facts["classes"]))
    return None
