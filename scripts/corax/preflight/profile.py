"""A Snakemake profile: which resources a rule asks for."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corax import config
from corax.errors import CoraxError


@dataclass(frozen=True)
class Profile:
    """The profile's file and its content."""

    path: Path
    content: Mapping[str, Any]

    def resources(self, rule: str) -> dict[str, Any]:
        """The resources that the profile sets for `rule`; texts without the quotes that Snakemake wants."""
        merged = {**self._block("default-resources"), **self._block("set-resources").get(rule, {})}
        return {key: value.strip("'\"") if isinstance(value, str) else value for key, value in merged.items()}

    def uses_containers(self) -> bool:
        """Whether stages run in images."""
        return "apptainer" in str(self.content.get("software-deployment-method", ""))

    def _block(self, key: str) -> dict[str, Any]:
        block = self.content.get(key) or {}
        if not isinstance(block, dict):
            raise CoraxError(f"{self.path}: {key}: must be a mapping, found {block!r}")
        return block


def read(folder: Path) -> Profile:
    """The profile in a folder; raises CoraxError."""
    path = folder / "config.yaml"
    return Profile(path, config.read(path))


def problems(profile: Profile) -> Iterator[str]:
    """Whether Snakemake finds the profile's executor."""
    executor = str(profile.content.get("executor", "local"))
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor != "local" and importlib.util.find_spec(module) is None:
        yield f"{profile.path}: executor {executor}: not installed in this Python; run `make slurm-setup`"
