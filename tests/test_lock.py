"""One process at a time in a folder, and the end of one that was killed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import stages

from corax.errors import CoraxError
from corax.lock import lock

HOLDER = """
import sys, threading, time
from pathlib import Path
import numpy as np
from corax.lock import lock

with lock(Path(sys.argv[1])):
    memory = [np.ones(2**20) for _ in range(100)]
    for _ in range(8):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_that_the_first_is_there(tmp_path: Path) -> None:
    with (
        lock(tmp_path),
        pytest.raises(CoraxError, match="another process is working"),
        lock(tmp_path, patience=0.1),
    ):
        pass


def test_a_second_process_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with lock(tmp_path):
            entered.set()

    thread = threading.Thread(target=second)
    with lock(tmp_path):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(30)
    assert entered.is_set()


def test_a_killed_process_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    """Its threads and memory outlive what /proc calls its end, the lock with them."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=stages.SCRIPTS, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()
        with lock(tmp_path):
            pass
