"""The form of an export, which its path decides: a folder for timm, FILE.onnx or FILE.pt2."""

from pathlib import Path

from fastdeit.config.parse import require
from fastdeit.export.folder import check_folder, export_folder
from fastdeit.export.network import Heads, Precision
from fastdeit.export.onnx_file import check_onnx, export_onnx
from fastdeit.export.program import export_program
from fastdeit.export.record import Exported, check_file
from fastdeit.inference.load import LoadedModel

_FILES = {".onnx": export_onnx, ".pt2": export_program}
_OTHERS = {".bin", ".ckpt", ".gz", ".json", ".pt", ".pth", ".safetensors", ".tar", ".ts", ".zip"}


def export_model(
    loaded: LoadedModel,
    path: str | Path,
    *,
    heads: Heads = "mean",
    precision: Precision = "fp32",
    ema: bool = False,
) -> Exported:
    """Write a model as a folder for timm and the Hub, as FILE.onnx or as FILE.pt2 (torch.export),
    load it again and compare it with the model.

    loaded: of `load`. path: a new or empty folder, or a file, which replaces an older one. heads:
    "mean" gives one output, the mean of a DeiT's heads; "both" gives both, in a file. precision: of
    the weights, and in a file of the arithmetic; no bf16 in ONNX. ema: whether the weights are the
    EMA, which the model card names. Raises ValueError for a path that cannot be written, a model
    that cannot be recorded, or an export that computes something else; then an older file does not
    change.
    """
    path = Path(path)
    check_form(path, heads, precision)
    if path.suffix in _FILES:
        return _FILES[path.suffix](loaded, path, heads=heads, precision=precision)
    return export_folder(loaded, path, precision=precision, ema=ema)


def check_form(path: Path, heads: Heads, precision: Precision) -> None:
    """Raise ValueError, before any work, for a path or settings that no export can have."""
    is_other = path.suffix.lower() in _OTHERS or path.is_file() and path.suffix not in _FILES
    require(not is_other, "output", str(path), "a new or empty folder, FILE.onnx or FILE.pt2")
    if path.suffix == ".onnx":
        check_onnx(precision)
    if path.suffix in _FILES:
        check_file(path)
        return
    allowed = "mean for a folder: it has both heads, and timm gives their mean"
    require(heads == "mean", "heads", heads, allowed)
    check_folder(path)
