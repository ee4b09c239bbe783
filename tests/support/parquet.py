"""Small Parquet files of images, in the form that Hugging Face's `datasets` 5.2 writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = ("tench, Tinca tinca", "goldfish, Carassius auratus")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Row = tuple[dict[str, Any] | None, Any]
"""An image, {bytes, path}, and its label."""


def describe(classes: object = CLASSES) -> dict[str, str]:
    """Return the metadata of the schema."""
    label = {"names": classes, "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write_table(
    file: Path,
    rows: Sequence[Row],
    metadata: dict[str, str] | None = None,
    names: Sequence[str] = ("image", "label"),
    **settings: Any,
) -> Path:
    """Write a file; settings: of pyarrow's writer."""
    images, labels = zip(*rows, strict=True)
    arrays = [pa.array(images, IMAGE), pa.array(labels)]
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)],
        describe() if metadata is None else metadata,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, **settings)
    return file


def write_hub_folder(root: Path, folder: Path, files: int = 2) -> Path:
    """Write the images of a folder of two classes as a data set of the Hub:
    data/train-00000-of-00002.parquet and so on; return root."""
    for split, name in (("train", "train"), ("val", "validation")):
        homes = sorted(home for home in (folder / split).iterdir() if home.is_dir())
        rows: list[Row] = [
            ({"bytes": image.read_bytes(), "path": f"{image.stem}_{home.name}.JPEG"}, label)
            for label, home in enumerate(homes)
            for image in sorted(home.iterdir())
        ]
        for number in range(files):
            file = root / "data" / f"{name}-{number:05}-of-{files:05}.parquet"
            # in turn, as the Hub's files are shuffled
            write_table(file, rows[number::files], row_group_size=3)
    return root
