"""Command lines of deit and timm: what their flags are here, and what means something else."""

from collections.abc import Sequence

from fastdeit.config.flags import join_choices, split_flags, values_of
from fastdeit.config.peer_flags import ANY, PEER_FLAGS


def translate_flags(argv: Sequence[str]) -> list[str]:
    """Return a command line with the flags of deit and timm replaced by those that mean the same.

    Raises ValueError for a flag or value of theirs that has no counterpart, naming what to do.
    """
    flags: list[str] = []
    for name, tokens in split_flags(argv):
        if name in PEER_FLAGS:
            flags += _translate(name, tokens)
        else:
            flags += _shorten_size(name, tokens)
    return flags


def _translate(name: str, tokens: Sequence[str]) -> list[str]:
    """Return the flags that mean the same as a flag of deit or timm."""
    peer = PEER_FLAGS[name]
    values = values_of(tokens)
    count = 0 if peer.is_switch and "=" not in tokens[0] else 1
    value = " ".join(values[:count])
    any_value = None if peer.is_switch else peer.accepts.get(ANY)
    own = peer.accepts.get(value, any_value)
    if own is None:
        raise ValueError(_refusal(name, value))
    return [*(part.format(value) for part in own.split()), *values[count:]]


def _refusal(name: str, value: str) -> str:
    peer = PEER_FLAGS[name]
    if not peer.accepts:
        return f"{name} of deit and timm is not a flag of fastdeit: {peer.advice}"
    allowed = "without a value" if peer.is_switch else join_choices(peer.accepts)
    advice = f": {peer.advice}" if peer.advice else ""
    return f"{name} must be {allowed} (got {value!r}){advice}"


def _shorten_size(name: str, tokens: Sequence[str]) -> Sequence[str]:
    """Return timm's `--input-size 3 S S` as `--input-size S`."""
    values = values_of(tokens)
    is_timms = name == "--input-size" and values[:1] == ["3"] and len(values) == 3
    return ["--input-size", values[1]] if is_timms and values[1] == values[2] else tokens


def list_unused(argv: Sequence[str]) -> list[str]:
    """Return the flags of deit and timm that are accepted with any value and have no effect."""
    unused = []
    for name, tokens in split_flags(argv):
        if name in PEER_FLAGS and PEER_FLAGS[name].accepts.get(ANY) == "":
            unused.append(" ".join(tokens))
    return unused
