"""Stopping on a signal at a point from which the work can go on."""

import signal
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def hold() -> None:
    """Let stop signals wait, in this process and those that it starts, until there is a StopRequest.

    For the seconds that imports take: a signal would end the process as if something had gone wrong.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


class StopRequest:
    """Whether a stop signal has come: `made`. As a context manager it gives the signals back to their old handlers.

    In a program that held them it ignores them from then on: it is about to end, and would end as if killed.
    """

    def __init__(self) -> None:
        self.made = False
        self._previous = {number: signal.signal(number, self._make) for number in STOP_SIGNALS}
        self._held = STOP_SIGNALS[0] in signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _make(self, number: int, frame: FrameType | None) -> None:
        self.made = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._held else handler)
