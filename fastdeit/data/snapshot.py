"""The images that a run began with, kept in its folder, so that it goes on with them whatever
became of the data set.

A plan is made for N images of known sizes. When files were damaged, deleted or added while a run
stood still, the table built at its next start is another; the run then takes its own, and leaves
out the rows that are not there as they were.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdeit.data.formats.listing import open_table
from fastdeit.data.index import Index
from fastdeit.storage.atomic import atomic_open

_GONE = "gone, damaged or changed since the run began"


def keep_images(index: Index, file: Path) -> None:
    """Writes the rows of an index to a Parquet file, whole or not at all."""
    columns = {"name": index.names, "label": index.labels, "num_bytes": index.num_bytes}
    columns |= {"height": index.sizes[:, 0], "width": index.sizes[:, 1]}
    if index.shard is not None and index.offset is not None:
        columns |= {"shard": index.shard, "offset": index.offset}
    facts = {
        "split": index.split,
        "classes": index.classes,
        "kind": index.kind,
        "shards": index.shards,
    }
    table = pa.table(columns).replace_schema_metadata({"fastdeit": json.dumps(facts)})
    with atomic_open(file) as opened:
        pq.write_table(table, opened, compression="zstd")


def reconcile(now: Index, file: Path) -> tuple[Index, dict[int, str]]:
    """The index as `keep_images` wrote it, below the root that it has now, and what is wrong with
    rows that `now` has not."""
    then = _read(file, now.root)
    if then.fingerprint() == now.fingerprint() and np.array_equal(then.sizes, now.sizes):
        return now, {}
    row = pc.index_in(then.names, value_set=now.names).fill_null(-1).to_numpy()
    same = (
        (row >= 0) & (then.num_bytes == now.num_bytes[row]) & (then.sizes == now.sizes[row]).all(1)
    )
    return then, dict.fromkeys(np.flatnonzero(~same).tolist(), _GONE)


def _read(file: Path, root: Path) -> Index:
    table = open_table(file).read()
    facts = json.loads(table.schema.metadata[b"fastdeit"])
    column = {name: table[name].combine_chunks() for name in table.column_names}
    return Index(
        root,
        facts["split"],
        tuple(facts["classes"]),
        facts["kind"],
        names=column["name"],
        labels=column["label"].to_numpy(),
        sizes=np.stack((column["height"].to_numpy(), column["width"].to_numpy()), 1).astype(
            np.int32
        ),
        num_bytes=column["num_bytes"].to_numpy(),
        shards=tuple(facts["shards"]),
        **{name: column[name].to_numpy() for name in ("shard", "offset") if name in column},
    )
