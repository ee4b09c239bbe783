"""hypothesis, or stand-ins for its names that skip a test where hypothesis is not installed."""

from typing import Any

import pytest

try:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
except ImportError:

    class _Anything:
        """A stand-in for strategies and settings that are never used."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self

    def given(*args: Any, **kwargs: Any) -> Any:  # type: ignore[no-redef]
        return pytest.mark.skip(reason="needs hypothesis")

    def settings(*args: Any, **kwargs: Any) -> Any:  # type: ignore[no-redef]
        return lambda test: test

    st: Any = _Anything()  # type: ignore[no-redef]
    HealthCheck: Any = st  # type: ignore[no-redef]
    Phase: Any = st  # type: ignore[no-redef]

__all__ = ["HealthCheck", "Phase", "given", "settings", "st"]
