"""The room on the disk for the teacher cache and the checkpoints; the runs from which a recording
saves time."""

from collections.abc import Iterator

from torch import nn

from fastdeit.estimate.lines import Line, Span, make_line
from fastdeit.estimate.rates import find_rates
from fastdeit.estimate.samples import Samples
from fastdeit.models.finetune.trainable import count_parameters
from fastdeit.teacher_cache.format import DEFAULT_K, KINDS, Manifest, choose_chunk_size
from fastdeit.teacher_cache.reader import DIGEST

_BEST = 1
"""The number of checkpoints beside the newest ones: that of the best evaluation."""


def count_cache_bytes(kind: str, images: int, classes: int, epochs: int) -> int:
    """Return the bytes of records.bin and chunks.bin of a teacher cache of `epochs` epochs; kind:
    hard or topk, the latter with the default number of logits."""
    samples = images // 2 * 2
    k = min(DEFAULT_K, classes) if kind == "topk" else 1
    chunk = choose_chunk_size(samples)
    manifest = Manifest(kind, k, classes, samples, {}, chunk=chunk)
    return epochs * (samples * manifest.record.itemsize + manifest.chunks * 2 * DIGEST)


def list_cache(samples: Samples, classes: int, epochs: int) -> Iterator[Line]:
    """Yield the size of a teacher cache of `epochs` epochs, for each kind."""
    for kind in KINDS:
        nbytes = count_cache_bytes(kind, samples.images, classes, epochs)
        basis = f"records and checksums of {epochs} epochs (docs/cache.md)"
        yield Line("teacher cache", kind, nbytes / 1e9, "GB", "counted", basis)


def list_recording(
    teacher_ms: Span | None, samples: Samples, epochs: int, unit: str
) -> Iterator[Line]:
    """Yield the teacher's time, and the number of runs from which a cache saves time.

    teacher_ms: milliseconds of a device for an image; unit: of the hours of a device.
    """
    recorded = epochs * (samples.images // 2 * 2)
    used = samples.epochs * samples.epoch_samples
    runs = recorded // used + 1
    basis = f"{recorded:,} records, {used:,} samples of a run with the live teacher"
    if teacher_ms is None:
        reason = "the FLOPs of the teacher cannot be counted"
        yield Line("teacher cache", "recording", None, unit, "unknown", reason)
    else:
        hours = teacher_ms.times(recorded / 3.6e6)
        yield make_line("teacher cache", "recording", hours, unit, "the teacher's FLOPs")
        saved = teacher_ms.times(used / 3.6e6)
        name = "saved by each run that reads it"
        yield make_line("teacher cache", name, saved, unit, "the teacher's FLOPs")
    yield Line("teacher cache", "recording pays from run", runs, "", "counted", basis)


def count_checkpoint_bytes(model: nn.Module, *, ema: bool) -> int:
    """Return the bytes of the tensors in a checkpoint: weights, two moments and the EMA, in
    fp32."""
    weights = sum(
        4 * tensor.numel() if tensor.is_floating_point() else tensor.nbytes
        for tensor in model.state_dict().values()
    )
    trained = 4 * count_parameters(model)[1]
    return (1 + ema) * weights + 2 * trained


def list_checkpoints(nbytes: int, keep: int, gb_per_s: float | None) -> Iterator[Line]:
    """Yield the room for checkpoints and the time to write one.

    nbytes: of the tensors of one; keep: the value of --keep-checkpoints; gb_per_s: speed of the
    disk, None: a measured one.
    """
    basis = "tensors; headers and JSON files are below 0.2 MB"
    yield Line("checkpoints", "one", nbytes / 1e9, "GB", "counted", basis)
    kept = keep + _BEST
    basis = f"{keep} newest, the best one; during a save one more"
    yield Line("checkpoints", "kept", kept * nbytes / 1e9, "GB", "counted", basis)
    yield Line("checkpoints", "largest room", (kept + 1) * nbytes / 1e9, "GB", "counted", basis)
    if gb_per_s is not None:
        seconds = nbytes / gb_per_s / 1e9
        basis = "bytes / --disk-gb-per-s, in the background"
        yield Line("checkpoints", "writing one", seconds, "s", "model", basis)
        return
    rates = find_rates("checkpoints")
    values = sorted(rate.value for rate in rates)
    span = Span(nbytes / values[len(values) // 2], nbytes / values[-1], nbytes / values[0])
    basis = f"written and verified in the background: {rates[-1].source}"
    yield make_line("checkpoints", "writing one", span, "s", basis, "measured")
