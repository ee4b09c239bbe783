"""Attention maps and tokens of a run's weights, on a few of its validation images, on the CPU."""

import numpy as np

from fastdeit.analysis.attention_maps import AttentionMaps, has_maps
from fastdeit.analysis.trace import TokenAnalysis, summarise_traces, trace_images
from fastdeit.data.index import Index
from fastdeit.display.pictures import draw_row, paint_heat
from fastdeit.display.pixels import denormalise
from fastdeit.inference.images import choose_rows, read_rows
from fastdeit.inference.load import load_model
from fastdeit.report.pictures import Picture, TokenLayer
from fastdeit.report.record import RunRecord

_HEIGHT = 128  # of a picture, in pixels
_HEADS = {"cls": "class head", "dist": "distillation head"}
_TOKENS = {"CLS": "class token", "DIST": "distillation token"}


def choose_weights(record: RunRecord) -> str:
    """Return ema or model: whose top-1 of both heads is higher in the newest evaluation."""
    top1 = {name: record.results.get(f"{name}/both/top1", -1.0) for name in ("ema", "model")}
    has_ema = record.folder.weights(ema=True).is_file()
    return "ema" if has_ema and top1["ema"] >= top1["model"] else "model"


def analyse_run(
    record: RunRecord, index: Index, count: int
) -> tuple[TokenAnalysis, tuple[Picture, ...]]:
    """Return the analysis of tokens and heads on `count` validation images, and a picture of each:
    the image, then the maps of each special token; no pictures for a model without such maps.

    Raises ValueError for weights that do not exist or cannot be used.
    """
    loaded = load_model(record.folder.path, ema=choose_weights(record) == "ema")
    rows = choose_rows(len(index), count)
    images = read_rows(index, rows, loaded.view)
    trace = trace_images(loaded.model, images)
    summary = summarise_traces(loaded.model, [trace], loaded.view.size)
    if trace.maps is None or not has_maps(loaded.model):
        return summary, ()
    pixels = denormalise(images, loaded.view.mean, loaded.view.std)
    what = " and ".join(_TOKENS[token] for token in trace.maps.tokens)
    pictures = []
    for place, row in enumerate(rows):
        maps = _list_maps(trace.maps.of_image(place))
        heats = [paint_heat(pixels[place], heat) for heat in maps]
        title = _title(record, index, row)
        alt = (
            f"Validation image {index.name(row)} ({title}); attention rollout of the {what}; "
            f"their attention in the last layer"
        )
        pictures.append(Picture(draw_row([pixels[place], *heats], _HEIGHT), title, alt))
    return summary, tuple(pictures)


def _list_maps(maps: AttentionMaps) -> list[np.ndarray]:
    """Return the maps of one image, (h, w) each: rollout of each token, then the mean of the last
    layer's heads."""
    last = maps.heads[0].mean(1)
    return [*maps.rollout[0].numpy(), *last.numpy()]


def _title(record: RunRecord, index: Index, row: int) -> str:
    """Return the class of a validation image, and the recorded answers of the heads, if any."""
    name = index.classes[index.labels[row]]
    found = record.predictions
    if found is None or found.images != index.fingerprint() or row not in found.rows:
        return name
    place = found.rows.tolist().index(row)
    model = choose_weights(record)
    answers = {title: found.answers.get(f"{model}/{head}") for head, title in _HEADS.items()}
    known = [
        f"{title} {found.classes[answer[place]]}"
        for title, answer in answers.items()
        if answer is not None
    ]
    return f"{name}: {', '.join(known)}" if known else name


def list_layers(analysis: TokenAnalysis) -> tuple[TokenLayer, ...]:
    """Return the numbers by place in the network, in the order in which an image passes them."""
    distances = analysis.distance.layers if analysis.distance else ()
    by_layer = {
        f"layer {place + 1}": float(np.mean(heads)) for place, heads in enumerate(distances)
    }
    if analysis.tokens is None:
        return tuple(TokenLayer(name, None, None, mean) for name, mean in by_layer.items())
    learned = TokenLayer("learned", analysis.tokens.learned, 0.0)
    layers = [
        TokenLayer(layer.name, layer.mean, layer.std, by_layer.get(layer.name))
        for layer in analysis.tokens.layers
    ]
    return (learned, *layers)
