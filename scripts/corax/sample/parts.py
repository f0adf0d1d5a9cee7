"""Finished samples, kept in numbered files so that a killed job goes on with the others."""

import json
import logging
from pathlib import Path

from corax.artifact import Artifact, damage
from corax.sample.requests import Completion

log = logging.getLogger("corax")


class Parts:
    """The completions in `folder`, by sample number; `add` new ones and `save` them now and then.

    A part is an artifact: it has a hash and is renamed into place. A damaged one is named and its samples are drawn
    again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[int, Completion] = {}
        self._new: dict[int, Completion] = {}
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(path for path in folder.glob("part-*.json") if not path.name.endswith(".manifest.json"))
        self._next = 1 + max((int(path.stem.removeprefix("part-")) for path in paths), default=-1)
        for path in paths:
            problem = damage(path)
            if problem:
                log.warning("%s: damaged samples, not used", problem)
                continue
            for row in json.loads(path.read_text()):
                number = row.pop("sample")
                self.done[number] = Completion(**row)

    def add(self, number: int, completion: Completion) -> None:
        """Sample `number` is finished."""
        self.done[number] = self._new[number] = completion

    def save(self) -> None:
        """Write what was added since the last time as a part of its own."""
        if self._new:
            path = self.folder / f"part-{self._next:06}.json"
            rows = [{"sample": number, **vars(completion)} for number, completion in self._new.items()]
            with Artifact(path, stage="sample", file=True) as artifact:
                artifact.path.write_text(json.dumps(rows))
            self._next += 1
            self._new.clear()
