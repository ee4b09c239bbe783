"""`fastdeit preview`: draw chosen samples as the model will see them.

fastdeit preview --recipe deit --data-path IMAGENET -o preview.png [--ordinals 0-7] [--sheet]

A row of the picture is a sample: the stored image with its crop, the crop resized and flipped, the
image after each operation, the image normalised and erased, and the image mixed with its partner.
The last two come from the training pipeline itself. The plan decides everything, so the same
ordinals always give the same picture.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.augment.exact import apply_op
from fastdeit.data.augment.resize.window import resize
from fastdeit.data.build import build_train_index, fetch_data, pipeline_options
from fastdeit.data.graphs.pipeline import build_train_pipeline, pack_draws
from fastdeit.data.index import Index
from fastdeit.data.stored_image import read_stored_image
from fastdeit.display.pixels import denormalise
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import TITLE_LETTERS, shorten
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix
from fastdeit.plan.build import build_plan
from fastdeit.plan.description import describe_mix, describe_operation
from fastdeit.plan.operations import OPERATIONS, OPS, RAND_AUGMENT_OPS, mean_colour, op_arguments
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.storage.atomic import atomic_open

_MOST = 64  # samples in a picture
_MAGNITUDES = (1.0, 3.0, 5.0, 7.0, 9.0, 10.0)


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    picture: np.ndarray
    """uint8 (H, W, 3)."""
    title: str
    box: tuple[int, ...] | None = None
    """A frame that is drawn on the picture: y, x, height, width."""


def preview_command(argv: Sequence[str]) -> int:
    """Run `fastdeit preview`; return 0.

    Exit with code 2 for a command line or a data set that cannot be used.
    """
    with one_line_errors():
        parsed, flags = make_preview_parser().parse_known_args(list(argv))
        ordinals = parse_ordinals(parsed.ordinals)
        config, recipe = parse_config(flags, "fastdeit preview")
        fetch_data(config)
        index = build_train_index(config)
        plan = build_plan(config, index.sizes)
        end = plan.num_images // 2 * 2 * plan.spec.repeats
        allowed = f"below {end}, the samples of an epoch"
        require(ordinals.max() < end, "ordinals", int(ordinals.max()), allowed)
        draw = sheet if parsed.sheet else samples
        rows = draw(index, plan, config, ordinals, parsed.epoch)
        title = f"{recipe}, seed {config.run.seed}, epoch {parsed.epoch}"
        _save(Path(parsed.output), rows, title)
    Terminal().say(f"{parsed.output}: {len(rows)} rows")
    return 0


def make_preview_parser() -> argparse.ArgumentParser:
    """Return the parser of preview's flags, without those of train."""
    details = (__doc__ or "").partition("\n\n")[2]
    more = "Flags of train, as --recipe, --data-path, --aa and --seed, decide the samples."
    parser = argparse.ArgumentParser(
        prog="fastdeit preview",
        usage="fastdeit preview [FLAGS] [flags of train]",
        description=f"Draw chosen samples as the model will see them.\n\n{details}",
        epilog=f"{more} They are listed by fastdeit train --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    output = "the picture to write (default: preview.png)"
    parser.add_argument("-o", "--output", metavar="FILE", default="preview.png", help=output)
    parser.add_argument("--epoch", type=int, default=0, help="an epoch, from 0 (default: 0)")
    ordinals = (
        f"places of at most {_MOST} samples in the order of the epoch, from 0: 0-7 or 3,5,12-14 "
        "(default: 0-7)"
    )
    parser.add_argument("--ordinals", default="0-7", help=ordinals)
    sheet = "show every operation at several magnitudes, on the first sample, instead of samples"
    parser.add_argument("--sheet", action="store_true", help=sheet)
    return parser


def parse_ordinals(text: str) -> np.ndarray:
    """Parse --ordinals, as 0-7 or 3,5,12-14: int64 (B,). Raises ValueError for another text."""
    ordinals: list[int] = []
    try:
        for part in text.split(","):
            ends = [int(end) for end in part.split("-")]
            ordinals += range(ends[0], ends[-1] + 1)
    except ValueError:
        ordinals = []
    is_valid = 0 < len(ordinals) <= _MOST and min(ordinals) >= 0
    require(is_valid, "ordinals", text, f"1 to {_MOST} of them, as 0-7 or 3,5,12-14")
    return np.array(ordinals, np.int64)


def samples(
    index: Index, plan: Plan, config: Config, ordinals: np.ndarray, epoch: int
) -> list[list[Cell]]:
    """Return one row of cells for each ordinal (int64 (B,)): the steps of its sample."""
    pairs = np.stack((ordinals, ordinals ^ 1), 1).reshape(-1)
    draws = plan.draw(epoch, pairs)
    images = _run_pipeline(index, plan, config, draws)
    mixed = mix(images, torch.from_numpy(draws.lam), torch.from_numpy(draws.box))
    mean, std = config.data.mean, config.data.std
    erased_pixels = denormalise(images, mean, std)
    mixed_pixels = denormalise(mixed, mean, std)
    names = [
        shorten(index.classes[label], TITLE_LETTERS) for label in index.labels[draws.image_index]
    ]
    rows = []
    for row in range(0, len(pairs), 2):
        cells = _draw_steps(index, plan, config, draws, row)
        erased = "erased" if draws.erase[row, 2] else "not erased"
        cells.append(Cell(erased_pixels[row], erased))
        cells.append(Cell(mixed_pixels[row], describe_mix(draws, row, names)))
        cells[0] = dataclasses.replace(cells[0], title=f"{pairs[row]}: {names[row]}")
        rows.append(cells)
    return rows


def _draw_steps(
    index: Index, plan: Plan, config: Config, draws: SampleParams, row: int
) -> list[Cell]:
    """Return the stored image, the crop, and the image after each operation."""
    stored = np.asarray(read_stored_image(index, int(draws.image_index[row])))
    crop = tuple(draws.crop[row].tolist())
    image = _crop(stored, draws, row, plan.spec.input_size)
    title = "crop, flipped" if draws.flip[row] else "crop"
    cells = [Cell(stored, "", crop), Cell(image, title)]
    fill = mean_colour(config.data.mean)
    for op, argument in zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True):
        if op >= 0:
            image = apply_op(image, op, argument, fill)
        cells.append(Cell(image, describe_operation(op, argument)))
    return cells


def _crop(stored: np.ndarray, draws: SampleParams, row: int, size: int) -> np.ndarray:
    """Return the crop of a stored image, resized and flipped: uint8 (size, size, 3)."""
    y, x, height, width = draws.crop[row].tolist()
    to_height, to_width, top, left = draws.resize[row].tolist()
    window = stored[y : y + height, x : x + width]
    return resize(window, to_height, to_width, top, left, size, bool(draws.flip[row]))


def sheet(
    index: Index, plan: Plan, config: Config, ordinals: np.ndarray, epoch: int
) -> list[list[Cell]]:
    """Return a row for each operation, on the crop of the first ordinal: those of RandAugment at
    several magnitudes, others at several arguments."""
    draws = plan.draw(epoch, ordinals[:1])
    stored = np.asarray(read_stored_image(index, int(draws.image_index[0])))
    crop = _crop(stored, draws, 0, plan.spec.input_size)
    fill = mean_colour(config.data.mean)
    rows = []
    for op, name in enumerate(OPS):
        cells = [Cell(crop, name)]
        for argument, level in _arguments(op):
            title = level + describe_operation(op, argument)
            cells.append(Cell(apply_op(crop, op, argument, fill), title))
        rows.append(cells)
    return rows


def _arguments(op: int) -> list[tuple[float, str]]:
    """Return arguments of an operation over its range, each with its magnitude as text, if any."""
    operation = OPERATIONS[op]
    if operation.span:
        return [(argument, "") for argument in np.linspace(*operation.span, 6).tolist()]
    if op >= len(RAND_AUGMENT_OPS):
        return [(0.0, "")]
    levels = list(_MAGNITUDES)
    if operation.signed:
        levels = sorted(sign * level for level in _MAGNITUDES[::2] for sign in (1, -1))
    arguments = []
    for level in levels:
        (argument,) = op_arguments(np.array([op]), np.abs([level]), np.array([level < 0]))
        arguments.append((float(argument), f"m {level:+g}: "))
    return arguments


def _run_pipeline(index: Index, plan: Plan, config: Config, draws: SampleParams) -> torch.Tensor:
    """Return the output of the training pipeline for the draws, on the CPU: float32 (B, 3, S,
    S)."""
    config = config.replace(augment={"augment_device": "cpu"})
    options = pipeline_options(config, World(0, 1, 0, 1, torch.device("cpu")))
    options = dataclasses.replace(
        options, batch_size=len(draws.image_index), feeds_paths=index.feeds_paths, prefetch=1
    )
    fed = (index.encoded(draws.image_index), *pack_draws(draws, plan.spec, options))
    (images,) = build_train_pipeline(lambda i: fed, plan.spec, options).run()
    return torch.from_numpy(np.array(images.as_tensor()))


def _save(path: Path, rows: Sequence[Sequence[Cell]], title: str) -> None:
    """Write the picture. Raises ValueError if it cannot be written or drawn."""
    pictures = [[(cell.picture, cell.title, cell.box) for cell in row] for row in rows]
    try:
        from fastdeit.display.figures import save_grid  # matplotlib imports slowly

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            save_grid(file, pictures, title)
    except OSError as error:
        allowed = "a file that can be written"
        raise ValueError(f"--output must be {allowed} (got {path}: {error})") from error
    except ImportError as error:
        raise ValueError(f"{path} cannot be drawn: {error}") from error
