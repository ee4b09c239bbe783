"""The parser of the flags of a run, made once for each recipe: it takes most of the time of
`parse_config`, which the tests call a thousand times."""

from typing import Any

from tyro._parsers import ParserSpecification

from fastdeit.config.cli import _UncheckedConfig

_make = ParserSpecification.from_callable_or_type
_made: dict[str, ParserSpecification] = {}


def reuse_parsers() -> None:
    """Let tyro make one parser for equal defaults and equal help."""
    setattr(ParserSpecification, "from_callable_or_type", staticmethod(_make_once))  # noqa: B010


def _make_once(kind: Any, **settings: Any) -> ParserSpecification:
    if kind is not _UncheckedConfig and _UncheckedConfig.__name__ not in repr(kind):
        return _make(kind, **settings)
    key = repr((kind, settings))
    if key not in _made:
        _made[key] = _make(kind, **settings)
    return _made[key]
