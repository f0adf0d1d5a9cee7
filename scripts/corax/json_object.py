"""Reading JSON that others wrote."""

import json
from pathlib import Path
from typing import Any

from corax.errors import CoraxError


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; raises CoraxError if it is missing or holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoraxError(f"{file}: missing") from None
    except (ValueError, RecursionError) as error:
        raise CoraxError(f"{file}: no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CoraxError(f"{file}: must be a JSON object")
    return content
