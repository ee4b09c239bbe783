"""The base of the errors that end a run without a traceback."""


class RunError(Exception):
    """A run cannot continue; its message is for the user."""

    heard_by_all = False
    """True for errors that every rank raises at the same step, so that rank 0 alone prints them."""
