"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

log = logging.getLogger("corax")

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts `unit`s up to `total`; `advance(n, note)` after each piece of work.

    with Progress("pretokenize", total=rows, unit="row") as progress:
        progress.advance(1000, "loss 0.41")
    """

    def __init__(self, name: str, total: int, unit: str, start: int = 0) -> None:
        self.name, self.total, self.unit, self.done, self.first = name, total, unit, start, start
        self.began = self.last_line = time.monotonic()
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=name, unit=unit) if terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` says more, such as the loss."""
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.last_line = now
            log.info(self.line(now - self.began, note))

    def line(self, elapsed: float, note: str) -> str:
        """The log line after `elapsed` seconds."""
        rate = (self.done - self.first) / elapsed if elapsed > 0 else 0.0
        left = clock((self.total - self.done) / rate) if rate else "?"
        parts = [f"{self.name}: {self.done}/{self.total} {self.unit}", f"{rate:.3g} {self.unit}/s", f"{left} left"]
        return ", ".join([*parts, note] if note else parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
