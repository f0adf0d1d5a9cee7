"""Whether the hub lets this user have the models that are still to be downloaded."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from corax.config import Config
from corax.download.hub import endpoint
from corax.settings.download import HubSource

SECONDS = 3
HUB = "https://huggingface.co"


def problems(config: Config, folder: Path) -> Iterator[str]:
    """One line for each model that the hub refuses; the token is never part of it."""
    for name, source in config.models.items():
        missing = not (folder / "results" / "models" / name / "manifest.json").exists()
        if missing and isinstance(source, HubSource):
            problem = _problem(source)
            if problem:
                yield f"models.{name}: {problem}"


def _problem(source: HubSource) -> str | None:
    address = f"{endpoint() or HUB}/{source.repository}/resolve/{source.revision}/config.json"
    token = os.environ.get("HF_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(address, headers=headers, method="HEAD")  # noqa: S310 - the hub's own address
        with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            advice = "HF_TOKEN is not accepted for it" if token else "it needs a token in HF_TOKEN"
            return f"{source.origin}: the hub refuses it ({error.code}): {advice}; accept its licence on the hub"
        return f"{source.origin}: the hub answers {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{source.origin}: the hub cannot be reached from here: {reason}"
