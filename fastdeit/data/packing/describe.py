"""Descriptions of a packed data set: its settings, its manifest, and the files beside the parts."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import PIL
from PIL import features

from fastdeit.data.index import Index
from fastdeit.data.packing.encode import FILTER
from fastdeit.data.packing.job import Packing
from fastdeit.data.packing.manifest import Manifest, Settings
from fastdeit.data.packing.parts import PartRecord
from fastdeit.data.packing.trial import AREAS, SIZE, Trial
from fastdeit.data.snapshot import keep_images
from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.file_hash import hash_file


def describe_settings(job: Packing, images: int) -> Settings:
    """Return the settings that decide the bytes of the parts; images: the number in a part."""
    encoding = asdict(job.encoding) | {"filter": FILTER}
    if job.encoding.copy:
        encoding = {"copy": True}
    return {
        "format": job.layout,
        "images of a shard": images,
        **encoding,
        "Pillow": PIL.__version__,
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg"),
        "images": {split: index.fingerprint() for split, index in job.source.items()},
    }


def describe(
    job: Packing, settings: Settings, trial: Trial, records: Sequence[PartRecord]
) -> Manifest:
    """Write the files beside the parts, and return the manifest of all files."""
    order = {split: place for place, split in enumerate(job.source)}
    parts = sorted(records, key=lambda record: (order[record.split], record.first))
    if job.layout == "folder":
        os.sync()  # a shard is on the disk when it has its name
    return Manifest(
        settings=dict(settings),
        source={split: _describe_split(index) for split, index in job.source.items()},
        difference=_describe_difference(trial),
        files=[*parts, *_write_beside(job, parts)],
    )


def _describe_split(index: Index) -> dict[str, Any]:
    return {
        "path": str(index.root),
        "split": index.split,
        "images": len(index),
        "bytes": int(index.num_bytes.sum()),
        "excluded": list(index.excluded),
    }


def _describe_difference(trial: Trial) -> dict[str, Any]:
    if not trial.psnr_db:
        return {}
    psnr = {str(area): value for area, value in zip(AREAS, trial.psnr_db, strict=True)}
    return {"images": trial.images, "pixels": SIZE, "PSNR in dB by share of the area": psnr}


def _write_beside(job: Packing, parts: Sequence[PartRecord]) -> list[PartRecord]:
    """Write the files that hold no images, and return their records: the images' names in the
    source and, beside shards, the classes and the list that timm reads."""
    names = [f"pack-{split}.parquet" for split in job.source]
    for name, index in zip(names, job.source.values(), strict=True):
        keep_images(index, job.output / name)
    if job.layout == "shards":
        classes = "".join(f"{name}\n" for name in job.source["train"].classes)
        texts = {"classes.txt": classes, "_info.json": _list_for_timm(parts)}
        for name, text in texts.items():
            with atomic_open(job.output / name) as file:
                file.write(text.encode("utf-8", "surrogateescape"))
        names += texts
    files = [job.output / name for name in names]
    return [PartRecord(file.name, file.stat().st_size, hash_file(file)) for file in files]


def _list_for_timm(parts: Sequence[PartRecord]) -> str:
    """Return the _info.json of timm's reader `wds` (data/readers/reader_wds.py), which calls `val`
    also `validation`."""
    splits: dict[str, Any] = {}
    for split in dict.fromkeys(part.split for part in parts):
        shards = [part for part in parts if part.split == split]
        splits[split] = {
            "name": split,
            "num_samples": sum(shard.images for shard in shards),
            "filenames": [shard.name for shard in shards],
            "shard_lengths": [shard.images for shard in shards],
        }
    splits["validation"] = splits["val"]
    return json.dumps({"splits": splits}, indent=1) + "\n"
