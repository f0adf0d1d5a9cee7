"""Names of folders for unfinished work, so that what other settings left behind is never taken up."""

import hashlib
import json
from typing import Any

from corax.settings.base import Settings


def fingerprint(content: Any) -> str:
    """16 hexadecimal digits that follow from `content`: JSON, and settings in it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_values).encode()).hexdigest()[:16]


def _values(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
