"""`fastdeit preview`: what the model will see, as a picture, for the planned draws of chosen
ordinals.

fastdeit preview --recipe deit --data-path IMAGENET -o preview.png [--epoch 0] [--ordinals 0-7]
[--sheet] [any flag of train]

A row is a sample: the stored image with its crop, the crop resized and flipped, each operation with
its argument, and, from the very pipeline of training, the image normalised and erased and then
mixed with its partner. `--sheet` shows every operation at several magnitudes instead. The plan
decides everything, so the same ordinals always give the same picture.
"""

import argparse
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.augment.exact import apply_op, mean_colour
from fastdeit.data.augment.resize import resize
from fastdeit.data.build import build_train_index, pipeline_options
from fastdeit.data.index import Index
from fastdeit.data.pipeline import build_train_pipeline, pack_draws
from fastdeit.display.pixels import denormalise
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix
from fastdeit.plan.build import build_plan
from fastdeit.plan.operations import OPERATIONS, OPS, RAND_AUGMENT_OPS, op_arguments
from fastdeit.plan.plan import Plan, SampleParams

_MOST = 64  # samples in a picture
_MAGNITUDES = (1.0, 3.0, 5.0, 7.0, 9.0, 10.0)


@dataclass(frozen=True)
class Cell:
    """One picture of the grid: uint8 (H, W, 3), what is written above it, and a box (y, x, height,
    width) drawn on it."""

    picture: np.ndarray
    title: str
    box: tuple[int, ...] | None = None


def preview_command(argv: Sequence[str]) -> int:
    """`fastdeit preview`: 0, or exit code 2 for a command line or a data set that cannot be used."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)  # its own flags; those of train follow
    with one_line_errors():
        asked, flags = _parser().parse_known_args(list(argv))
        ordinals = _ordinals(asked.ordinals)
        config, recipe = parse_config(flags, "fastdeit preview")
        index = build_train_index(config)
        plan = build_plan(config, index.sizes)
        _check(plan, config, ordinals)
        picture = sheet if asked.sheet else samples
        rows = picture(index, plan, config, ordinals, asked.epoch)
        _save(Path(asked.output), rows, f"{recipe}, seed {config.run.seed}, epoch {asked.epoch}")
    print(f"{asked.output}: {len(rows)} rows")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output", default="preview.png")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--ordinals", default="0-7")
    parser.add_argument("--sheet", action="store_true")
    return parser


def _ordinals(text: str) -> np.ndarray:
    """int64: `0-7` or `3,5,12-14`. Raises ValueError for anything else."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        chosen = [number for part in ends for number in range(part[0], part[-1] + 1)]
    except ValueError:
        chosen = []
    if not 0 < len(chosen) <= _MOST or min(chosen) < 0:
        raise ValueError(
            f"--ordinals: got {text!r}, allowed are 1 to {_MOST} of them, such as 0-7 or 3,5,12-14"
        )
    return np.array(chosen, np.int64)


def _check(plan: Plan, config: Config, ordinals: np.ndarray) -> None:
    count = plan.num_images // 2 * 2 * plan.spec.repeats
    if ordinals.max() >= count:
        raise ValueError(
            f"--ordinals: got {ordinals.max()}, allowed is below {count}, the samples of an epoch"
        )


def samples(
    index: Index, plan: Plan, config: Config, ordinals: np.ndarray, epoch: int
) -> list[list[Cell]]:
    """A row of cells for each ordinal (int64 (B,))."""
    pairs = np.stack((ordinals, ordinals ^ 1), 1).reshape(-1)
    draws = plan.draw(epoch, pairs)
    images = _through_pipeline(index, plan, config, draws)
    mixed = mix(images, torch.from_numpy(draws.lam), torch.from_numpy(draws.box))
    mean, std = config.data.mean, config.data.std
    erased_pixels = denormalise(images, mean, std)
    mixed_pixels = denormalise(mixed, mean, std)
    names = [index.classes[label] for label in index.labels[draws.image_index]]
    rows = []
    for row in range(0, len(pairs), 2):
        cells = _steps(index, plan, config, draws, row)
        erased = "erased" if draws.erase[row, 2] else "not erased"
        cells.append(Cell(erased_pixels[row], erased))
        cells.append(Cell(mixed_pixels[row], _mix_title(draws, names, row)))
        cells[0] = dataclasses.replace(cells[0], title=f"{pairs[row]}: {names[row]}")
        rows.append(cells)
    return rows


def _steps(index: Index, plan: Plan, config: Config, draws: SampleParams, row: int) -> list[Cell]:
    """The stored image, the crop, and the image after each operation."""
    stored, (y, x, height, width) = (
        _opened(index, int(draws.image_index[row])),
        draws.crop[row].tolist(),
    )
    to_height, to_width, top, left = draws.resize[row].tolist()
    flip = bool(draws.flip[row])
    image = resize(
        stored[y : y + height, x : x + width],
        to_height,
        to_width,
        top,
        left,
        plan.spec.input_size,
        flip,
    )
    cells = [
        Cell(stored, "", (y, x, height, width)),
        Cell(image, "crop, flipped" if flip else "crop"),
    ]
    for op, argument in zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True):
        image = apply_op(image, op, argument, mean_colour(config.data.mean)) if op >= 0 else image
        cells.append(Cell(image, _op_title(op, argument)))
    return cells


def sheet(
    index: Index, plan: Plan, config: Config, ordinals: np.ndarray, epoch: int
) -> list[list[Cell]]:
    """A row for each operation, on the first ordinal's crop: RandAugment's at several magnitudes,
    others at arguments."""
    cropped = _steps(index, plan, config, plan.draw(epoch, ordinals[:1]), 0)[1].picture
    rows = []
    for number, name in enumerate(OPS):
        cells = [Cell(cropped, name)]
        for argument, level in _arguments(number):
            cells.append(
                Cell(
                    apply_op(cropped, number, argument, mean_colour(config.data.mean)),
                    level + _op_title(number, argument),
                )
            )
        rows.append(cells)
    return rows


def _arguments(op: int) -> list[tuple[float, str]]:
    """Arguments of an operation over its range, with what led to each."""
    operation = OPERATIONS[op]
    if operation.span:
        return [(argument, "") for argument in np.linspace(*operation.span, 6).tolist()]
    if op >= len(RAND_AUGMENT_OPS):
        return [(0.0, "")]
    signs = (1, -1) if operation.signed else (1,)
    levels = [sign * magnitude for sign in signs for magnitude in _MAGNITUDES[:: len(signs)]]
    levels = sorted(levels) if len(signs) > 1 else levels
    one = np.array([op])
    return [
        (float(op_arguments(one, np.abs([level]), np.array([level < 0]))[0]), f"m {level:+g}: ")
        for level in levels
    ]


def _through_pipeline(
    index: Index, plan: Plan, config: Config, draws: SampleParams
) -> torch.Tensor:
    """float32 (B, 3, S, S): what the training pipeline makes of the draws, on the CPU."""
    options = pipeline_options(config, World(0, 1, 0, 1, torch.device("cpu")))
    options = dataclasses.replace(
        options, batch_size=len(draws.image_index), feeds_paths=index.feeds_paths, prefetch=1
    )
    fed = (index.encoded(draws.image_index), *pack_draws(draws, plan.spec, options))
    (images,) = build_train_pipeline(lambda i: fed, plan.spec, options).run()
    return torch.from_numpy(np.array(images.as_tensor()))


def _opened(index: Index, row: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(index.read(row))).convert("RGB"))


def _op_title(op: int, argument: float) -> str:
    if op < 0:
        return "no operation"
    operation = OPERATIONS[op]
    name = operation.name.removesuffix("Increasing").removesuffix("Rel")
    return f"{name} {operation.unit.format(argument)}".strip()


def _mix_title(draws: SampleParams, names: Sequence[str], row: int) -> str:
    lam = float(draws.lam[row])
    if lam == 1.0:
        return f"not mixed: {names[row]}"
    kind = "CutMix" if draws.box[row].any() else "Mixup"
    return f"{kind} {lam:.2f} {names[row]} + {1 - lam:.2f} {names[row + 1]}"


def _save(path: Path, rows: Sequence[Sequence[Cell]], title: str) -> None:
    from fastdeit.display.figures import save_grid  # matplotlib imports slowly

    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, [[(cell.picture, cell.title, cell.box) for cell in row] for row in rows], title)
