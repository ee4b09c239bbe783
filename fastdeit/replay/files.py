"""The output of a replay: images as PNG, plan.json, step.json, and the table on the console."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from fastdeit.data.loaders.batch import Batch
from fastdeit.display.pixels import denormalise
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import shorten
from fastdeit.kernels.mix import mix
from fastdeit.replay.results import DigestComparison, Report
from fastdeit.storage.jsonl import to_strict_json

IMAGES = "images"
PLAN = "plan.json"
STEP = "step.json"
_SHOWN = 16  # micro-batches in the table
_NAME = 60  # letters of an image's name there


def check_output(folder: Path) -> None:
    """Raise ValueError unless the folder is new, empty, or that of an earlier replay."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder or a new name (got the file {folder})")
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = sorted(present - {IMAGES, PLAN, STEP})
    if others:
        raise ValueError(
            f"--output must be a new or an empty folder, or that of a replay "
            f"(got {folder}, which holds {others[0]})"
        )


def prepare_output(folder: Path) -> None:
    """Create the folder, or empty that of an earlier replay. Raise OSError."""
    shutil.rmtree(folder / IMAGES, ignore_errors=True)
    for name in (PLAN, STEP):
        (folder / name).unlink(missing_ok=True)
    (folder / IMAGES).mkdir(parents=True)


def save_images(
    folder: Path, batch: Batch, mean: Sequence[float], std: Sequence[float]
) -> list[dict[str, str]]:
    """Write two pictures per sample, erased and mixed, and return their names.

    The model gets them normalised, in fp32 or fp16; here they are rounded to 8 bits, and the noise
    of an erased box is clipped.
    """
    erased = denormalise(batch.images, mean, std)
    mixed = denormalise(mix(batch.unmixed, batch.lam, batch.box), mean, std)
    lines = []
    for row, ordinal in enumerate(batch.ordinals.tolist()):
        name = f"{IMAGES}/{ordinal:08}.png"
        mixed_name = f"{IMAGES}/{ordinal:08}-mixed.png"
        Image.fromarray(erased[row]).save(folder / name)
        Image.fromarray(mixed[row]).save(folder / mixed_name)
        lines.append({"picture": name, "mixed_picture": mixed_name})
    return lines


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, in the form of `to_strict_json`."""
    path.write_text(json.dumps(to_strict_json(value), indent=1, allow_nan=False))


def show_report(report: Report, folder: Path) -> None:
    """Print the step beside what was recorded of it, its micro-batches, and the notes."""
    terminal = Terminal()
    recorded, now = report.recorded, report.now
    table = Table("", "recorded", "now", "difference", title=_title(report), title_justify="left")
    known = recorded.values or {}
    for name in ("loss", "base", "distill", "grad_norm", "lr"):
        _add_number(table, name, known.get(name), getattr(now, name))
    _add_digest(table, recorded.digest, recorded.same_samples)
    same_inputs = {None: "not recorded", True: "same", False: "OTHER INPUTS"}
    table.add_row("teacher, weights", "", "", same_inputs[report.origin.inputs.same])
    words = {True: "yes", False: "no", None: ""}
    table.add_row("skipped", words[recorded.skipped], words[now.skipped], "")
    terminal.show(table)
    terminal.show(_tabulate_micro_batches(report))
    for note in report.notes:
        terminal.say(f"note: {note}")
    terminal.say(f"{folder}: {len(report.samples)} samples, two pictures each, {PLAN}, {STEP}")


def _title(report: Report) -> str:
    place = f"epoch {report.epoch}, step {report.step_of_epoch} of it"
    return f"step {report.step} of {report.run} ({place})"


def _add_number(table: Table, name: str, recorded: float | None, now: float) -> None:
    if recorded is None:
        table.add_row(name, "", f"{now:.7g}", "")
        return
    are_nan = math.isnan(recorded) and math.isnan(now)
    difference = 0.0 if recorded == now or are_nan else now - recorded
    table.add_row(name, f"{recorded:.7g}", f"{now:.7g}", f"{difference:+.2g}")


def _add_digest(table: Table, digest: DigestComparison | None, same: bool | None) -> None:
    words = {None: "not recorded", True: "same", False: "OTHER SAMPLES"}
    if digest is None:
        table.add_row("digest", "", "", words[same])
        return
    first, end = digest.steps
    steps = "" if end - first == 1 else f" of steps {first} to {end - 1}"
    table.add_row(f"digest{steps}", digest.recorded, digest.now, words[same])


def _tabulate_micro_batches(report: Report) -> Table:
    table = Table("rank", "micro-batch", "loss", "recorded", "samples with the largest loss")
    for line in report.micro_batches[:_SHOWN]:
        worst = ", ".join(
            f"{shorten(sample['image'], _NAME)} {sample['loss']:.4g}" for sample in line["worst"]
        )
        recorded = str(line.get("recorded", ""))
        place = str(line["rank"]), str(line["micro_batch"])
        table.add_row(*place, f"{line['loss']:.7g}", recorded, worst)
    return table
