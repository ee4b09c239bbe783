"""The variables by which a launcher tells a process its place. Importing this imports no torch."""

import os


def is_alone() -> bool:
    """Return True unless a launcher started this process as one of several.

    WORLD_SIZE without RANK comes from a batch script, not from a launcher.
    """
    return "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"
