"""The model card, README.md of a folder for the Hugging Face Hub.

Its header is the Hub's metadata, with the accuracy as a model index; the licence is left to the
user. Source: huggingface_hub, repocard_data.py.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fastdeit.display.text import printable
from fastdeit.export.build import Origin
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView

_TASK = "image-classification"
_MOST_NAMES = 20  # classes that a card names
_MEASURES = {"top1": "top-1", "top5": "top-5"}
_HEADS = {"cls": "class head", "dist": "distillation head", "both": "mean of both heads"}
_USE = """\
```python
import timm
from PIL import Image

model = timm.create_model("hf-hub:OWNER/{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(transform(Image.open("photo.jpg").convert("RGB"))[None]).softmax(-1)
```

With timm 1.0.26 or newer. For a folder on disk, write `"local-dir:FOLDER"` in place of
`"hf-hub:OWNER/{name}"`.
"""
_LABELS = 'Output `i` is class `model.pretrained_cfg["label_names"][i]`.\n'


def write_card(loaded: LoadedModel, name: str, precision: str, origin: Origin | None) -> str:
    """Return the text of a model card.

    name: that of the repository; precision: that of the weights; origin: the training, None if
    nothing is known of it.
    """
    trained = "" if origin is None else ", trained with fastdeit"
    parts = [
        f"---\n{_head(name, origin).to_yaml()}\n---\n",
        f"# {_escape(name)}\n",
        f"An image classifier: `{loaded.name}`{trained}.\n",
        _table(("", ""), _describe(loaded, precision).items()),
        f"## Use\n\n{_USE.format(name=name)}",
    ]
    if loaded.classes is not None:
        parts.append(_LABELS)
    if origin is not None:
        parts += _describe_training(origin, precision)
    parts.append(
        "## Licence\n\nNot chosen yet: name one in this section, and as `license:` in the header."
    )
    return "\n".join(parts) + "\n"


def _head(name: str, origin: Origin | None) -> ModelCardData:
    facts: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": _TASK,
        "tags": [_TASK, "timm"],
    }
    if origin is None or "both/top1" not in origin.scores:
        return ModelCardData(**facts)
    data_set = printable(origin.data_set)
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=data_set,
            dataset_name=data_set,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=label,
            metric_value=round(origin.scores[f"both/{measure}"], 4),
        )
        for measure, label in _MEASURES.items()
    ]
    return ModelCardData(**facts, model_name=name, eval_results=results)


def _describe(loaded: LoadedModel, precision: str) -> dict[str, str]:
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    rows = {
        "Parameters": f"{count / 1e6:.1f} M",
        "Images": _describe_view(loaded.view),
        "Classes": _name_classes(loaded),
        "Weights": f"{precision}; SHA-256 of the tensors before the export: `{loaded.weights}`",
    }
    if hasattr(loaded.model, "head_dist"):
        rows["Heads"] = "class and distillation head; in evaluation the mean of their logits"
    return rows


def _describe_view(view: EvalView) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (view.mean, view.std))
    crop = f"{view.interpolation}, crop {view.crop_pct:g} ({view.crop_mode})"
    return f"{view.size} × {view.size} px, {crop}, mean {mean}, std {std}"


def _name_classes(loaded: LoadedModel) -> str:
    count = int(loaded.model.num_classes)  # type: ignore[arg-type]
    if loaded.classes is None:
        return f"{count:,}"
    names = [_escape(name) for name in loaded.classes[:_MOST_NAMES]]
    more = ", ..." if count > _MOST_NAMES else ""
    return f"{count:,}: {', '.join(names)}{more}"


def _describe_training(origin: Origin, precision: str) -> list[str]:
    rows = {"Data set": _escape(origin.data_set), **origin.settings}
    parts = [
        "## Training\n",
        _table(("", ""), [(name, _escape(value)) for name, value in rows.items()]),
        f"```sh\n{origin.command}\n```\n",
    ]
    if origin.scores:
        of = "" if precision == "fp32" else " of the weights before the export"
        parts.append(f"## Results\n\nAccuracy{of}:\n\n{_table_scores(origin.scores)}")
    return parts


def _table_scores(scores: Mapping[str, float]) -> str:
    """Return the table of validation accuracies; a model with one head has only `both`."""
    heads = [head for head in _HEADS if f"{head}/top1" in scores]
    rows = [
        (
            _HEADS[head] if len(heads) > 1 else "model",
            *(f"{scores[f'{head}/{measure}']:.2f}" for measure in _MEASURES),
        )
        for head in heads
    ]
    return _table(("validation", *(f"{label} %" for label in _MEASURES.values())), rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(text))
