"""Functions as machine code; other threads run meanwhile."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first call. No cache on disk: the folder of the sources may be read-only."""
    return cast(F, numba.njit(nogil=True)(function))


def fused(function: F) -> F:
    """As `compiled`, with one rounding where a product is added to something: a fused multiply and add."""
    return cast(F, numba.njit(nogil=True, fastmath={"contract"})(function))
