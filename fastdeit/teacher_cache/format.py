"""What recorded answers are: the manifest of a cache, and the layout of its records.

A record of kind "hard" is the teacher's class, uint16. One of kind "topk" has its k largest logits
less the largest, fp16 in falling order, their classes, uint16, and the log-sum-exp of all its
logits less the largest, fp32, so that any temperature can be applied later; a softmax does not see
what was taken off.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdeit.distributed.errors import RunError
from fastdeit.storage.atomic import read_bounded

FORMAT = 1
KINDS = ("hard", "topk")
LARGEST_CHUNK, _SMALLEST_CHUNK, _CHUNKS_AN_EPOCH = 4096, 8, 16
MAX_CLASSES = 65_535
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
"""Of a manifest."""


class CacheError(RunError, ValueError):
    """A cache that cannot be used; the message names the file and what is wrong."""


def require(ok: bool, folder: Path, problem: str) -> None:
    if not ok:
        raise CacheError(f"{folder}: {problem}")


@dataclass(frozen=True)
class Manifest:
    """What a cache holds; samples: records in an epoch; facts: what decided images and answers, by
    name, nested."""

    kind: str
    k: int
    num_classes: int
    samples: int
    facts: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    chunk: int = LARGEST_CHUNK
    """Ordinals that are recorded, checked and lost together."""
    format: int = FORMAT

    def check(self, folder: Path) -> None:
        """Raises CacheError for a value that no cache can have."""
        require(self.kind in KINDS, folder, f"kind {self.kind!r}, allowed are {', '.join(KINDS)}")
        limit = f"{self.num_classes} classes, allowed are 2 to {MAX_CLASSES}: a record has 16 bits for one"
        require(2 <= self.num_classes <= MAX_CLASSES, folder, limit)
        allowed = min(self.num_classes, 1000) if self.kind == "topk" else 1
        require(1 <= self.k <= allowed, folder, f"k {self.k}, allowed are 1 to {allowed}")
        pairs = self.samples >= 2 and self.chunk >= 2 and self.samples % 2 == self.chunk % 2 == 0
        require(
            pairs,
            folder,
            f"{self.samples} samples in chunks of {self.chunk}, allowed are even numbers from 2",
        )

    @property
    def record(self) -> np.dtype:
        """The layout of one record."""
        if self.kind == "hard":
            return np.dtype("<u2")
        return np.dtype(
            [("logits", "<f2", self.k), ("classes", "<u2", self.k), ("logsumexp", "<f4")]
        )

    @property
    def shown(self) -> str:
        """The kind, in words."""
        return self.kind if self.kind == "hard" else f"top {self.k} logits"

    @property
    def chunks(self) -> int:
        """In an epoch."""
        return -(-self.samples // self.chunk)

    def ordinals(self, chunk: int) -> np.ndarray:
        """int64: those of a chunk; the last one of an epoch may be short."""
        return np.arange(
            chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples), dtype=np.int64
        )


def chunk_size(samples: int) -> int:
    """Ordinals in a chunk: a power of two, so that an epoch has some chunks to share out and to
    lose."""
    size = LARGEST_CHUNK
    while size > _SMALLEST_CHUNK and size * _CHUNKS_AN_EPOCH > samples:
        size //= 2
    return size


def read_manifest(folder: Path) -> Manifest:
    """Raises CacheError for a folder that is no cache, or one that this version cannot read."""
    path = folder / MANIFEST
    try:
        values = json.loads(read_bounded(path, MAX_BYTES))
    except OSError as error:
        raise CacheError(
            f"{path}: {error.strerror}; `fastdeit cache build -o {folder}` makes a cache"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path}: no JSON of at most {MAX_BYTES:,} bytes: {error}") from None
    found = values.get("format") if isinstance(values, dict) else None
    require(found == FORMAT, path, f"format {found}, this version reads {FORMAT}")
    known = {item.name: getattr(item.type, "__origin__", item.type) for item in fields(Manifest)}
    wrong = [name for name, kind in known.items() if type(values.get(name)) is not kind]
    require(not wrong, path, f"{', '.join(wrong)} missing or of another type")
    manifest = Manifest(**{name: values[name] for name in known})
    manifest.check(path)
    return manifest


def differences(then: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """A line for each fact that has another value now, named by its path; facts that `now` leaves
    out are not compared."""
    lines: list[str] = []
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            lines += differences(before, value, f"{path}{name}.")
        elif before != value:
            lines.append(f"{path}{name} {before!r} in the cache, {value!r} here")
    return lines


def encode(logits: torch.Tensor, manifest: Manifest) -> np.ndarray:
    """Records, (B,) of `manifest.record`, of the teacher's logits (B, K)."""
    best = logits.argmax(1)
    if manifest.kind == "hard":
        return best.cpu().numpy().astype(manifest.record)
    logits = logits.float() - logits.float().amax(1, keepdim=True)
    # the class that a live teacher is taken at its word for comes first, also where two are equally
    # large
    classes = logits.scatter(1, best[:, None], torch.inf).topk(manifest.k, dim=1).indices
    top = logits.gather(1, classes)
    records = np.empty(len(logits), manifest.record)
    largest = float(np.finfo(np.float16).max)
    records["logits"] = top.clamp_min(-largest).cpu().numpy()
    records["classes"] = classes.cpu().numpy()
    records["logsumexp"] = logits.logsumexp(1).cpu().numpy()
    if fault := invalid_reason(records, manifest):
        raise CacheError(f"the teacher's answer has {fault}")
    return records


def invalid_reason(records: np.ndarray, manifest: Manifest) -> str:
    """What no teacher answers in records, (B,) of `manifest.record`; empty if nothing: a digest
    tells damage, not nonsense."""
    classes = records if manifest.kind == "hard" else records["classes"]
    if classes.size and classes.max() >= manifest.num_classes:
        return f"the class {classes.max()}, allowed are 0 to {manifest.num_classes - 1}"
    whole = manifest.kind == "hard" or (
        np.isfinite(records["logits"]).all() and np.isfinite(records["logsumexp"]).all()
    )
    return "" if whole else "a number that is not finite"


def decode(raw: torch.Tensor, manifest: Manifest, hard: bool) -> torch.Tensor:
    """The teacher's answer out of records, uint8 (B, record bytes), on their device.

    hard: class ids, int64 (B,). Otherwise logits less the largest, fp32 (B, K): exact to fp16 for
    the recorded classes; the others share what the log-sum-exp says they have, evenly.
    """
    width = 2 * manifest.k
    if manifest.kind == "hard":
        return _uint16(raw)[:, 0]
    classes = _uint16(raw[:, width : 2 * width])
    if hard:
        return classes[:, 0]
    top = raw[:, :width].contiguous().view(torch.float16).float()
    total = raw[:, 2 * width :].contiguous().view(torch.float32)[:, 0]
    # log of (exp(total) - sum exp(top)) over the classes left; rounding may leave less than nothing
    left = (1 - (top - total[:, None]).exp().sum(1)).clamp_min(1e-7)
    rest = total + (left / max(1, manifest.num_classes - manifest.k)).log()
    rest = torch.minimum(rest, top[:, -1])  # none of them was among the k largest
    return rest[:, None].repeat(1, manifest.num_classes).scatter_(1, classes, top)


def label_records(labels: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Records, (B,) of `manifest.record`, that stand for these classes, int64 (B,), when the hard
    answer is decoded."""
    if manifest.kind == "hard":
        return labels.astype(manifest.record)
    records = np.zeros(len(labels), manifest.record)
    records["classes"] = labels[:, None]
    return records


def _uint16(raw: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 2n) to int64 (B, n); torch does little with uint16 itself."""
    return raw.contiguous().view(torch.int16).long() & 0xFFFF
