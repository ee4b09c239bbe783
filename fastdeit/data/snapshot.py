"""The images that a run began with, stored in its folder, so that it resumes with them even if the
data set has changed.

A plan is made for N images of known sizes. When files are damaged, deleted or added while a run is
stopped, the next start builds another index. The run then uses the stored index, and excludes the
rows whose images have changed.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdeit.data.formats.listing import open_table, read_columns
from fastdeit.data.index import Index
from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.json_values import load_json

_GONE = "gone, damaged or changed since the run began"


def keep_images(index: Index, file: Path) -> None:
    """Write the rows of an index to a Parquet file, whole or not at all."""
    names = ("split", "classes", "kind", "shards")
    facts = {name: getattr(index, name) for name in names}
    table = index.to_table().replace_schema_metadata({"fastdeit": json.dumps(facts)})
    with atomic_open(file) as opened:
        pq.write_table(table, opened, compression="zstd")


def reconcile(now: Index, file: Path) -> tuple[Index, dict[int, str]]:
    """Return the index that `keep_images` wrote, below the root of `now`, and the fault of each row
    whose image `now` does not have. If a shard was written again, the offsets are those of
    `now`."""
    then = read_images(file, now.root)
    if then.fingerprint() == now.fingerprint() and np.array_equal(then.sizes, now.sizes):
        return now, {}
    row = pc.index_in(then.names, value_set=now.names).fill_null(-1).to_numpy()
    same_bytes = then.num_bytes == now.num_bytes[row]
    same_size = (then.sizes == now.sizes[row]).all(1)
    gone = ~((row >= 0) & same_bytes & same_size)
    if then.offset is not None and now.offset is not None:
        then = dataclasses.replace(then, offset=np.where(gone, then.offset, now.offset[row]))
    return then, dict.fromkeys(np.flatnonzero(gone).tolist(), _GONE)


def read_classes(file: Path) -> tuple[str, ...]:
    """Return the classes of the index that `keep_images` wrote."""
    return tuple(_read_facts(open_table(file).schema_arrow)["classes"])


def read_images(file: Path, root: Path) -> Index:
    """Return the index that `keep_images` wrote, of images below `root`; read no image.

    Raises OSError, ValueError or ArrowException for any other file.
    """
    table = read_columns(open_table(file))
    return Index.from_table(table, _read_facts(table.schema) | {"root": root})


def _read_facts(schema: pa.Schema) -> dict[str, Any]:
    facts = load_json((schema.metadata or {}).get(b"fastdeit", b"null"))
    if not isinstance(facts, dict):
        raise ValueError("the list of the training images is not one of a run")
    return facts
