"""What a replay leaves: the images as PNG, plan.json and step.json; and the table that a person
sees."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from fastdeit.data.batch import Batch
from fastdeit.kernels.mix import mix

Line = dict[str, Any]
IMAGES, PLAN, STEP = "images", "plan.json", "step.json"
_SHOWN = 16  # micro-batches in the table


def prepare_output(folder: Path) -> None:
    """Makes the folder; what a replay before has left there goes. Raises ValueError if it holds
    anything else, OSError."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is a file, allowed is a folder or a new name")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({path.name for path in folder.iterdir()} - {IMAGES, PLAN, STEP})
    if others:
        raise ValueError(
            f"--output: {folder} holds {others[0]}, which is of no replay; allowed is a new or an empty folder"
        )
    shutil.rmtree(folder / IMAGES, ignore_errors=True)
    (folder / IMAGES).mkdir()


def save_images(
    folder: Path, batch: Batch, mean: Sequence[float], std: Sequence[float]
) -> list[Line]:
    """Writes two pictures a sample, erased and then mixed, and returns their names.

    The model gets them normalised, in fp32 or fp16; here they are rounded to 8 bits, the noise of
    an erased box cut to them.
    """
    mixed = mix(batch.images, batch.lam, batch.box)
    pictures = [_to_pictures(images, mean, std) for images in (batch.images, mixed)]
    lines = []
    for row, ordinal in enumerate(batch.ordinals.tolist()):
        names = {
            "picture": f"{IMAGES}/{ordinal:08}.png",
            "mixed_picture": f"{IMAGES}/{ordinal:08}-mixed.png",
        }
        for name, pixels in zip(names.values(), pictures, strict=True):
            Image.fromarray(pixels[row].numpy()).save(folder / name)
        lines.append(names)
    return lines


def _to_pictures(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (B, H, W, 3) on the CPU."""
    scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
    return (
        ((images.float().cpu() * scale + shift).clamp(0, 1) * 255)
        .round()
        .byte()
        .permute(0, 2, 3, 1)
        .contiguous()
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """Numbers that are not finite, which JSON has not, by their names."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show(told: Line, folder: Path) -> None:
    """The table on the console."""
    console, recorded = Console(highlight=False), told["recorded"]
    table = Table("", "recorded", "now", "difference", title=_title(told), title_justify="left")
    for name in ("loss", "base", "distill", "grad_norm", "lr"):
        _add_number(table, name, (recorded["values"] or {}).get(name), told["now"][name])
    digest = recorded["digest"] or {"steps": None, "recorded": "", "now": ""}
    same = {None: "not recorded"}.get(
        recorded["same_samples"], "same" if recorded["same_samples"] else "OTHER SAMPLES"
    )
    table.add_row(f"digest{_steps(digest['steps'])}", digest["recorded"], digest["now"], same)
    skipped = {True: "yes", False: "no", None: ""}
    table.add_row("skipped", skipped[recorded["skipped"]], skipped[told["now"]["skipped"]], "")
    console.print(table)
    console.print(_split(told))
    for note in told["notes"]:
        console.print(f"note: {note}")
    console.print(f"{folder}: {len(told['samples'])} samples, two pictures each, {PLAN}, {STEP}")


def _title(told: Line) -> str:
    return f"step {told['step']} of {told['run']} (epoch {told['epoch']}, step {told['step_of_epoch']} of it)"


def _add_number(table: Table, name: str, then: float | None, now: float) -> None:
    table.add_row(
        name,
        *("", f"{now:.7g}", "")
        if then is None
        else (f"{then:.7g}", f"{now:.7g}", f"{now - then:+.2g}"),
    )


def _steps(steps: Sequence[int] | None) -> str:
    return (
        ""
        if steps is None or steps[1] - steps[0] == 1
        else f" of steps {steps[0]} to {steps[1] - 1}"
    )


def _split(told: Line) -> Table:
    """The losses of each process's micro-batches."""
    table = Table("rank", "micro-batch", "loss", "recorded", "samples with the largest loss")
    for line in told["micro_batches"][:_SHOWN]:
        worst = ", ".join(f"{sample['image']} {sample['loss']:.4g}" for sample in line["worst"])
        place, then = (str(line["rank"]), str(line["micro_batch"])), line.get("recorded", "")
        table.add_row(*place, f"{line['loss']:.7g}", str(then), worst)
    return table
