"""Names of the models that exist: ours and timm's."""

import difflib

import timm

from fastdeit.models.sizes import SIZES


def suggest_names(name: str) -> str:
    """Return "; near: ..." with the model names nearest to this one, or "" if none is near."""
    near = difflib.get_close_matches(name, [*SIZES, *timm.list_models()], n=3)
    return f"; near: {', '.join(near)}" if near else ""
