"""The user's cache folder, which nobody else writes to."""

import os
from pathlib import Path


def find_user_cache() -> Path:
    """Return the cache folder of this user; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
