"""Functions as machine code."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first call. No cache on disk: the folder of the sources may be read-only."""
    return cast(F, numba.njit(function))
