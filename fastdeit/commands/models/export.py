"""`fastdeit export CHECKPOINT --output PATH`: write trained weights for other programs.

PATH decides the form: a new folder for timm and the Hugging Face Hub, FILE.onnx for ONNX, FILE.pt2
for torch.export. The written export is loaded again and compared with the model on photographs;
only an export with the same results gets its name.

Exit codes: 0; 2 for a mistake in the command line, weights that cannot be exported, and an export
with other results.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.flags import Checkpoint, SourceFlags
from fastdeit.commands.output import print_json
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable
from fastdeit.export.forms import check_form, export_model
from fastdeit.export.network import Heads, Precision
from fastdeit.export.record import Exported
from fastdeit.inference.load import load_model
from fastdeit.inference.views import ViewOptions, change_view


@dataclass(frozen=True)
class FormFlags(Section):
    """The export to write."""

    heads: Heads = "mean"
    """Outputs of a file: the mean of a DeiT's two heads, or both, as cls and dist."""
    precision: Precision = "fp32"
    """Precision of the weights and, in a file, of the arithmetic; bf16 not for ONNX."""
    json: bool = False
    """Print one JSON value in place of a line."""


@dataclass(frozen=True)
class ExportOptions:
    """The flags of `fastdeit export`."""

    checkpoint: Checkpoint
    output: str
    """A new folder, FILE.onnx or FILE.pt2; an older file is replaced."""
    weights: SourceFlags = field(default_factory=SourceFlags)
    view: ViewOptions = field(default_factory=ViewOptions)
    form: FormFlags = field(default_factory=FormFlags)


def export_command(argv: Sequence[str]) -> int:
    """Run `fastdeit export`; return 0.

    Exit with code 2 for a command line or weights that cannot be used, and for an export with
    other results.
    """
    with one_line_errors():
        options = parse_options(argv, ExportOptions, "fastdeit export", __doc__ or "")
        form = options.form
        path = Path(options.output)
        check_form(path, form.heads, form.precision)
        ema = options.weights.ema
        loaded = load_model(options.checkpoint, ema=ema, model=options.weights.model)
        loaded = change_view(loaded, options.view.apply(loaded.view))
        exported = export_model(loaded, path, heads=form.heads, precision=form.precision, ema=ema)
    terminal = Terminal()
    if form.json:
        print_json(terminal, exported.to_dict())
    else:
        terminal.say(_describe(exported))
    return 0


def _describe(exported: Exported) -> str:
    found = exported.difference
    same = f"{found.same_class} of {found.images} photographs have the same class"
    check = f"logits differ by at most {found.largest:.1e} ({found.tolerance:.1e} is allowed)"
    size = f"{exported.size / 1e6:.1f} MB"
    what = f"{exported.architecture}, {exported.precision}, {size}"
    return f"{printable(exported.path)}: {what}; loaded again: {check}, {same}"
