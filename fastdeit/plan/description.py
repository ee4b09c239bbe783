"""The planned operations of a sample in words, as previews and reports name them."""

from collections.abc import Sequence

from fastdeit.plan.operations import OPERATIONS
from fastdeit.plan.plan import SampleParams


def describe_sample(draws: SampleParams, row: int, names: Sequence[str]) -> list[str]:
    """Return one line for each planned operation of a sample, in the order of the operations.

    row: the sample, whose partner is row ^ 1; names: the class of each sample of `draws`.
    """
    lines = [describe_crop(draws, row)]
    if draws.flip[row]:
        lines.append("flipped")
    planned = zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True)
    lines += [describe_operation(op, argument) for op, argument in planned if op >= 0]
    y, x, height, width = draws.erase[row].tolist()
    if height:
        lines.append(f"erased {height} x {width} at ({y}, {x})")
    return [*lines, describe_mix(draws, row, names)]


def describe_crop(draws: SampleParams, row: int) -> str:
    """Return the crop of the stored image: height x width at (y, x), in its pixels."""
    y, x, height, width = draws.crop[row].tolist()
    return f"crop {height} x {width} at ({y}, {x})"


def describe_operation(op: int, argument: float) -> str:
    """Return the name of an operation with its argument; op: its number in `OPERATIONS`, or -1."""
    if op < 0:
        return "no operation"
    operation = OPERATIONS[op]
    name = operation.name.removesuffix("Increasing").removesuffix("Rel")
    return f"{name} {operation.unit.format(argument)}".strip()


def describe_mix(draws: SampleParams, row: int, names: Sequence[str]) -> str:
    """Return how a sample is mixed: the operation, and the classes with their shares."""
    lam = float(draws.lam[row])
    if lam == 1.0:
        return f"not mixed: {names[row]}"
    kind = "CutMix" if draws.box[row].any() else "Mixup"
    return f"{kind} {describe_target(lam, names[row], names[row ^ 1])}"


def describe_target(lam: float, name: str, partner: str) -> str:
    """Return the classes of a sample with their shares, or its class if it is not mixed."""
    return name if lam == 1 else f"{lam:.2f} {name} + {1 - lam:.2f} {partner}"
