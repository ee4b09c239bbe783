"""Format of a teacher cache: its manifest and the layout of its records.

A record of kind "hard" is the teacher's class, uint16. A record of kind "topk" has four fields, in
which the largest logit has been subtracted from every logit (a softmax does not change by that):
the k largest logits, fp16 in descending order; their classes, uint16; the log-sum-exp of all logits
divided by a temperature, fp32, for the temperature 1 and for that of the run. So the probabilities
of the k classes are exact at both. Format 1 lacks the second log-sum-exp.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdeit.distributed.errors import RunError
from fastdeit.storage.atomic import read_bounded
from fastdeit.storage.json_values import load_json

FORMAT = 2
"""The format that is written."""
FORMATS = (1, 2)
"""Formats that can be read and continued."""
KINDS = ("hard", "topk")
"""The kinds of records."""
LARGEST_CHUNK = 4096
"""The largest number of ordinals in a chunk."""
_SMALLEST_CHUNK = 8
_CHUNKS_PER_EPOCH = 16
MAX_CLASSES = 65_535
"""The largest number of classes; a record has 16 bits for a class."""
DEFAULT_K = 100
"""The number of logits in a "topk" record unless another is chosen; docs/cache.md shows what fewer
cost."""
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
"""The largest size of a manifest, in bytes."""


class CacheError(RunError, ValueError):
    """Error for a cache that cannot be used; the message names the file and what is wrong."""


def require(ok: bool, path: Path, problem: str) -> None:
    """Raise CacheError with the path and the problem unless `ok`."""
    if not ok:
        raise CacheError(f"{path}: {problem}")


@dataclass(frozen=True)
class Manifest:
    """Description of a cache.

    samples: the number of records in an epoch. facts: what decided the images and the teacher's
    outputs, by name, nested.
    """

    kind: str
    k: int
    num_classes: int
    samples: int
    facts: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    chunk: int = LARGEST_CHUNK
    """The number of ordinals that are recorded and verified together."""
    format: int = FORMAT
    tau: float = 1.0
    """Temperature of the second log-sum-exp of a "topk" record; 1 for the other records."""

    def check(self, folder: Path) -> None:
        """Raise CacheError for a value that no cache can have."""
        kinds = f"kind must be one of {', '.join(KINDS)} (got {self.kind!r})"
        require(self.kind in KINDS, folder, kinds)
        # a record has 16 bits for a class
        classes = f"the number of classes must be 2 to {MAX_CLASSES} (got {self.num_classes})"
        require(2 <= self.num_classes <= MAX_CLASSES, folder, classes)
        largest = min(self.num_classes, 1000) if self.kind == "topk" else 1
        require(1 <= self.k <= largest, folder, f"k must be 1 to {largest} (got {self.k})")
        for name, value in (("samples", self.samples), ("chunk", self.chunk)):
            is_pairs = value >= 2 and value % 2 == 0
            require(is_pairs, folder, f"{name} must be an even number from 2 (got {value})")
        teacher = self.facts.get("teacher", {})
        require(isinstance(teacher, dict), folder, "facts: teacher must be a mapping")
        is_tau = self.tau == 1 if self.kind == "hard" or self.format == 1 else 0 < self.tau < 1e6
        require(is_tau, folder, f"tau must be a temperature of the records (got {self.tau})")

    @property
    def record(self) -> np.dtype:
        """Return the layout of one record."""
        if self.kind == "hard":
            return np.dtype("<u2")
        sums = 1 if self.format == 1 else 2
        return np.dtype(
            [("logits", "<f2", self.k), ("classes", "<u2", self.k), ("logsumexp", "<f4", (sums,))]
        )

    @property
    def taus(self) -> tuple[float, ...]:
        """Return the temperatures at which the recorded probabilities are exact; () for "hard"."""
        if self.kind == "hard":
            return ()
        return (1.0,) if self.format == 1 else (1.0, self.tau)

    @property
    def description(self) -> str:
        """Return the kind in words."""
        return self.kind if self.kind == "hard" else f"top {self.k} logits"

    @property
    def chunks(self) -> int:
        """Return the number of chunks in an epoch."""
        return -(-self.samples // self.chunk)

    def ordinals(self, chunk: int) -> np.ndarray:
        """Return the ordinals of a chunk, int64; the last chunk of an epoch may be short."""
        first = chunk * self.chunk
        return np.arange(first, min(first + self.chunk, self.samples), dtype=np.int64)


def choose_chunk_size(samples: int) -> int:
    """Return the number of ordinals in a chunk: a power of two, and so small that an epoch has
    several chunks, which jobs can share."""
    size = LARGEST_CHUNK
    while size > _SMALLEST_CHUNK and size * _CHUNKS_PER_EPOCH > samples:
        size //= 2
    return size


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a cache.

    Raises CacheError for a folder that is no cache, or one that this version cannot read.
    """
    path = folder / MANIFEST
    try:
        values = load_json(read_bounded(path, MAX_BYTES))
    except OSError as error:
        advice = f"`fastdeit cache build [the flags of the run] -o {folder}` makes a cache"
        raise CacheError(f"{path}: {error.strerror}; {advice}") from None
    except ValueError as error:
        limit = f"must be JSON of at most {MAX_BYTES:,} bytes"
        raise CacheError(f"{path}: {limit}: {error}") from None
    found = values.get("format") if isinstance(values, dict) else None
    known_formats = " or ".join(map(str, FORMATS))
    require(found in FORMATS, path, f"format must be {known_formats} (got {found})")
    if found == 1:
        values["tau"] = 1.0
    known = {item.name: getattr(item.type, "__origin__", item.type) for item in fields(Manifest)}
    wrong = [name for name, kind in known.items() if type(values.get(name)) is not kind]
    require(not wrong, path, f"{', '.join(wrong)}: missing or of another type")
    manifest = Manifest(**{name: values[name] for name in known})
    manifest.check(path)
    return manifest


def list_differences(then: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Return a line for each fact that has another value now, named by its path; facts that `now`
    does not have are not compared."""
    lines: list[str] = []
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            lines += list_differences(before, value, f"{path}{name}.")
        elif before != value:
            lines.append(f"{path}{name} {before!r} in the cache, {value!r} here")
    return lines


def encode(logits: torch.Tensor, manifest: Manifest) -> np.ndarray:
    """Return records, (B,) of `manifest.record`, for the teacher's logits (B, K). Raises CacheError
    for logits that are not finite."""
    best = logits.argmax(1)
    if manifest.kind == "hard":
        return best.cpu().numpy().astype(manifest.record)
    logits = logits.float() - logits.float().amax(1, keepdim=True)
    # where two logits are equally large, the class that argmax chooses comes first: a live teacher
    # decides by argmax
    classes = logits.scatter(1, best[:, None], torch.inf).topk(manifest.k, dim=1).indices
    top = logits.gather(1, classes)
    records = np.empty(len(logits), manifest.record)
    largest = float(np.finfo(np.float16).max)
    records["logits"] = top.clamp_min(-largest).cpu().numpy()
    records["classes"] = classes.cpu().numpy()
    sums = [(logits / tau).logsumexp(1) for tau in manifest.taus]
    records["logsumexp"] = torch.stack(sums, 1).cpu().numpy()
    if fault := invalid_reason(records, manifest):
        raise CacheError(f"the teacher's output has {fault}")
    return records


def invalid_reason(records: np.ndarray, manifest: Manifest) -> str:
    """Return why records, (B,) of `manifest.record`, cannot come from a teacher, or "" if they can.

    A checksum finds damaged records, not wrong ones.
    """
    classes = records if manifest.kind == "hard" else records["classes"]
    if classes.size and classes.max() >= manifest.num_classes:
        return f"the class {classes.max()}, which must be 0 to {manifest.num_classes - 1}"
    if manifest.kind == "hard":
        return ""
    finite = np.isfinite(records["logits"]).all() and np.isfinite(records["logsumexp"]).all()
    return "" if finite else "a number that is not finite"


def decode(raw: torch.Tensor, manifest: Manifest, hard: bool, tau: float = 1.0) -> torch.Tensor:
    """Return the teacher's output from records, uint8 (B, record bytes), on their device.

    hard: class ids, int64 (B,). Otherwise logits minus the largest, fp32 (B, K), whose softmax at
    the temperature tau, one of `Manifest.taus`, is the teacher's: exact to fp16 for the recorded
    classes; the others share the rest of the probability evenly.
    """
    width = 2 * manifest.k
    if manifest.kind == "hard":
        return _uint16(raw)[:, 0]
    classes = _uint16(raw[:, width : 2 * width])
    if hard:
        return classes[:, 0]
    top = raw[:, :width].contiguous().view(torch.float16).float()
    sums = raw[:, 2 * width :].contiguous().view(torch.float32)
    total = sums[:, manifest.taus.index(tau)]
    # rounding may make the rest negative
    share = (1 - (top / tau - total[:, None]).exp().sum(1)).clamp_min(1e-7)
    rest = tau * (total + (share / max(1, manifest.num_classes - manifest.k)).log())
    # none of the others was among the k largest
    rest = torch.minimum(rest, top[:, -1])
    return rest[:, None].repeat(1, manifest.num_classes).scatter_(1, classes, top)


def encode_labels(labels: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Return records, (B,) of `manifest.record`, that decode to these classes, int64 (B,), with
    `hard`."""
    if manifest.kind == "hard":
        return labels.astype(manifest.record)
    records = np.zeros(len(labels), manifest.record)
    records["classes"] = labels[:, None]
    return records


def _uint16(raw: torch.Tensor) -> torch.Tensor:
    """View uint8 (B, 2n) as n integers a row, int64 (B, n): torch has few operations on uint16."""
    return raw.contiguous().view(torch.int16).long() & 0xFFFF
