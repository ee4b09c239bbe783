"""Command lines of deit and timm: their flags translated, and notes on what differs here."""

import os
import re
from collections.abc import Mapping, Sequence

from fastdeit.config.flags import join_choices, own_flags, split_flags, values_of
from fastdeit.config.peer_flags import ANY, PEER_FLAGS, SWITCH
from fastdeit.config.schema import Config
from fastdeit.display.text import quote_words

_TIMMS = {"-b", "-j", "--workers", "--data-dir", "--img-size", "--crop-pct", "--amp"}
"""The flags of timm that deit does not have."""

_CHECKPOINTS = ("--resume", "--finetune")
"""The flags of deit that may name the checkpoint which its --eval scores, in the order of
preference."""

_EVALUATED = {
    "--data-path": "--data-path",
    "--model": "--model",
    "--input-size": "--eval-input-size",
    "--eval-crop-ratio": "--eval-crop-ratio",
}
"""The flags of `fastdeit evaluate`, by the flags of deit that its --eval uses."""

_DEITS_CROP = "0.875"  # timm's models have other ratios

_PAPERS_SIZE = 224
"""The side in pixels of the images of deit's students and of its teacher."""

_CHOICES = {SWITCH: "without a value", ANY: "one value"}


def translate_flags(argv: Sequence[str]) -> list[str]:
    """Return a command line in which the flags of deit and timm are replaced by ours of the same
    meaning.
    These come last, as deit's --ThreeAugment has priority over --aa and --reprob.

    Raises ValueError, which names what to do, for a flag or value of theirs without a counterpart.
    """
    _refuse_eval(argv)
    own: list[str] = []
    translated: list[str] = []
    for name, tokens in split_flags(argv):
        if name in PEER_FLAGS:
            translated += _translate(name, values_of(tokens))
        elif name == "--model":
            own += [_rename_model(token) for token in tokens]
        else:
            own += _shorten_size(name, tokens)
    return own + translated


def _refuse_eval(argv: Sequence[str]) -> None:
    """Raise ValueError for deit's --eval, with the command that scores the same checkpoint."""
    values = {name: values_of(tokens) for name, tokens in split_flags(argv)}
    if "--eval" not in values:
        return
    places = [values[name] for name in _CHECKPOINTS if values.get(name)]
    words = ["fastdeit", "evaluate", *(places[0] if places else ["CHECKPOINT"])]
    for name, flag in _EVALUATED.items():
        words += [flag, *values[name][-1:]] if values.get(name) else []
    if "--eval-crop-ratio" not in words:
        words += ["--eval-crop-ratio", _DEITS_CROP]
    raise ValueError(f"{_refusal('--eval', '')}: {quote_words(*words)}")


def _translate(name: str, values: Sequence[str]) -> list[str]:
    """Return our flags with the meaning of a flag of deit or timm. Raises ValueError if there are
    none."""
    value = " ".join(values)
    own = PEER_FLAGS[name].translate(value) if len(values) <= 1 else None
    if own is None:
        raise ValueError(_refusal(name, value))
    return own


def _refusal(name: str, value: str) -> str:
    peer = PEER_FLAGS[name]
    if not peer.accepts:
        return f"{name} of deit and timm is not a flag of fastdeit: {peer.advice}"
    allowed = join_choices(_CHOICES.get(choice, choice) for choice in peer.accepts)
    advice = f": {peer.advice}" if peer.advice else ""
    return f"{name} must be {allowed} (got {value!r}){advice}"


def _rename_model(token: str) -> str:
    """Return timm's name of one of deit's models with LayerScale; do not change other text."""
    return re.sub(
        r"deit_(small|medium|base|large|huge)_(patch1[46])_LS$", r"deit3_\1_\2_224", token
    )


def _shorten_size(name: str, tokens: Sequence[str]) -> Sequence[str]:
    """Return timm's `--input-size 3 S S` as `--input-size S`."""
    values = values_of(tokens)
    is_timms = name == "--input-size" and values[:1] == ["3"] and len(values) == 3
    return ["--input-size", values[1]] if is_timms and values[1] == values[2] else tokens


def list_notes(argv: Sequence[str], config: Config) -> list[str]:
    """Return notes on what has another meaning in deit or timm than in a run of this command, if
    the command looks like one of theirs: it has a flag of theirs, or one with an underscore, as
    deit's --output_dir.
    """
    if not _looks_like_peer(argv):
        return []
    notes = [*_compare_batch(argv), *_compare_defaults(argv, config)]
    unused = _list_unused(argv)
    if unused:
        notes.append(f"without effect here: {', '.join(unused)}")
    return [*notes, "more differences, and --recipe deit_paper: docs/coming-from-deit.md"]


def explain_rate(argv: Sequence[str], error: str) -> str:
    """Return a hint to add to the error of a learning rate: deit's is that of another batch."""
    notes = _compare_batch(argv) if _looks_like_peer(argv) else []
    return f"; {notes[0]}" if notes and error.startswith(("--min-lr", "--warmup-lr")) else ""


def _looks_like_peer(argv: Sequence[str]) -> bool:
    theirs = PEER_FLAGS.keys() - own_flags().keys()
    for name, tokens in split_flags(argv):
        has_underscore = "_" in tokens[0].partition("=")[0] and name != "--local-rank"
        if name in theirs or has_underscore or values_of(tokens) == ["IMNET"]:
            return True
    return False


def _compare_batch(argv: Sequence[str]) -> list[str]:
    given = _given(argv)
    values = given.get("--batch-size", [])
    if len(values) != 1 or not values[0].isdecimal():
        return []
    gpus = _count_gpus(given)
    theirs = f"on {gpus} GPUs add --batch-size {int(values[0]) * gpus}"
    here = f"--batch-size {values[0]} is that of all processes together"
    return [f"{here}, in deit and timm that of one GPU: {theirs}"]


def _given(argv: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each flag, by its given name and by our name."""
    both = [*split_flags(argv), *split_flags(translate_flags(argv))]
    return {name: values_of(tokens) for name, tokens in both}


def _count_gpus(given: Mapping[str, Sequence[str]]) -> int:
    """Return the number of GPUs of deit's run: that of its Slurm flags or of this launch, or 4 as
    in its README."""
    if "--nodes" in given or "--ngpus" in given:
        return _number(given, "--nodes", 2) * _number(given, "--ngpus", 8)
    # a batch script may set it to anything
    processes = os.environ.get("WORLD_SIZE", "")
    return max(1, int(processes)) if processes.isdecimal() and processes != "1" else 4


def _number(given: Mapping[str, Sequence[str]], flag: str, default: int) -> int:
    text = "".join(given.get(flag, ()))
    return int(text) if text.isdecimal() else default


def _compare_defaults(argv: Sequence[str], config: Config) -> list[str]:
    """Return notes on defaults of this run that are different in deit or timm."""
    given = _given(argv)
    notes = {}
    if config.augment.repeated_aug and config.augment.aug_repeats == 2:
        notes["--aug-repeats"] = "an epoch has 2 copies of an image, in deit 3: --aug-repeats 3"
    if config.distill.distillation_type == "hard":
        other = "in deit and timm there is none: --distillation-type none"
        notes["--distillation-type"] = f"distillation is hard, {other}"
    is_student = config.model.model.startswith("deit_") and not config.model.finetune
    if is_student and not config.model.qkv_bias:
        notes["--qkv-bias"] = "query, key and value have no bias, in deit they do: --qkv-bias"
    if given.get("--mixup-mode") == ["batch"] and config.mix.mixup_group == 2:
        notes["--mixup-group"] = (
            "lambda and box are drawn for each pair, not for the batch of a GPU: --mixup-group 256"
        )
    size = config.data.input_size
    if "--input-size" in given and size != _PAPERS_SIZE and config.distill.needs_teacher:
        notes["--teacher-input-size"] = (
            "a teacher gets the images in its own size, in deit in the student's: "
            f"--teacher-input-size {size}"
        )
    if "--lr" in given and given.keys() & _TIMMS and not config.optim.unscale_lr:
        notes["--unscale-lr"] = "--lr is for a batch of 512, in timm for any batch: --unscale-lr"
    chosen = given.keys() | {flag.replace("--no-", "--", 1) for flag in given}
    return [note for flag, note in notes.items() if flag not in chosen]


def _list_unused(argv: Sequence[str]) -> list[str]:
    """Return the flags of deit and timm that are accepted with any value and have no effect."""
    unused = []
    for name, tokens in split_flags(argv):
        if name in PEER_FLAGS and PEER_FLAGS[name].accepts.get(ANY) == "":
            unused.append(" ".join(tokens))
    return unused
