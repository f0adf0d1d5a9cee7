"""Stop signals before, in and after the work that they may stop."""

import os
import signal
import subprocess
import sys

import stages

from corax.stop import STOP_SIGNALS, StopRequest

PROGRAM = """
import os, threading
from corax import stop

def signals():
    for number in stop.STOP_SIGNALS:
        os.kill(os.getpid(), number)

stop.hold()
signals()
with stop.StopRequest() as request:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    assert request.made
signals()
raise SystemExit(75)
"""


def test_a_program_that_held_signals_ends_as_it_chose_however_often_they_come() -> None:
    """Also with a thread that was started when they were not held, as those of OpenMP are."""
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=stages.SCRIPTS, capture_output=True, text=True)
    assert result.returncode == 75, result.stderr


def test_other_programs_get_their_handlers_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert request.made and [signal.getsignal(number) for number in STOP_SIGNALS] == before
