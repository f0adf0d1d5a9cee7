"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
import warm
from hypothesis import HealthCheck, settings
from prepared import Prepared

# How long an example takes says what else the machine does, and that the first one compiles.
settings.register_profile("corax", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("corax")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The artifacts before training, made once."""
    return Prepared.make(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def server() -> Iterator[warm.Server]:
    """Starts stages that have imported torch already."""
    with warm.Server() as server:
        yield server
