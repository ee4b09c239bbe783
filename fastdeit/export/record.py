"""An export: written under another name, loaded again, compared with the model, then named."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastdeit.config.parse import require
from fastdeit.export.check import Difference, Run, check_difference, measure_difference
from fastdeit.export.network import OUTPUTS, Heads, Precision
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import describe_model
from fastdeit.storage.atomic import atomic_open

Description = dict[str, Any]
"""JSON values by name."""


@dataclass(frozen=True)
class Exported:
    """A written export. form: "folder", "onnx" or "program"; size: its bytes, of all its files;
    difference: that from the model in fp32, as the check found it."""

    path: Path
    form: str
    architecture: str
    heads: str
    precision: str
    size: int
    difference: Difference

    def to_dict(self) -> Description:
        """Return the fields as JSON values."""
        return asdict(self) | {"path": str(self.path)}


def describe(loaded: LoadedModel, heads: Heads, precision: Precision) -> Description:
    """Return what a user of an export needs, as JSON values by timm's names.

    architecture, label_names (if they are known), input_size, mean, std, crop_pct, crop_mode,
    interpolation, ...: fields of config.json, flat; outputs: their names; precision; weights: the
    hash of the tensors that were loaded.
    """
    config = describe_model(loaded.name, loaded.model, loaded.view, loaded.classes)
    own = {"outputs": OUTPUTS[heads], "precision": precision, "weights": loaded.weights}
    names = {key: config[key] for key in ("architecture", "label_names") if key in config}
    return names | config["pretrained_cfg"] | own


class Writer(NamedTuple):
    """A form of files: its name, a function that writes one with its description, and one that
    loads it again."""

    form: str
    save: Callable[[BinaryIO, Description], None]
    load: Callable[[Path], Run]


def write_checked(
    loaded: LoadedModel, path: Path, writer: Writer, heads: Heads, precision: Precision
) -> Exported:
    """Write a file of one recorded network, and name it `path` if it computes what the model does.

    Raises ValueError if the file cannot be written, or computes something else; then an older file
    does not change.
    """
    check_file(path)
    try:
        with atomic_open(path) as file:
            writer.save(file, describe(loaded, heads, precision))
            file.flush()
            written = Path(file.name)
            difference = measure_difference(writer.load(written), loaded, heads, precision)
            check_difference(difference, precision)
            size = written.stat().st_size
    except OSError as error:
        require(False, "output", f"{path}: {error}", "a file that can be written")
    return Exported(path, writer.form, loaded.name, heads, precision, size, difference)


def check_file(path: Path) -> None:
    """Raise ValueError, before any work, unless a file can be written at a path."""
    require(not path.is_dir(), "output", str(path), "a file, not a folder")
    folder = path.absolute().parent
    require(folder.is_dir(), "output", str(path), f"in a folder that exists ({folder} does not)")
