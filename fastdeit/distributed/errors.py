"""The base of the errors that end a run without a traceback."""


class RunError(Exception):
    """The error of a run that cannot continue; its message is for the user."""

    heard_by_all = False
    """Whether every rank raises the error at the same step, so that rank 0 alone prints it."""
