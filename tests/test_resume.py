"""Kills, signals and damaged checkpoints, a few of each; `make test-resume` does hundreds (benchmarks/resume.py)."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import interruptions
import pytest
import warm
from interruptions import TARGETS, Trial
from prepared import Prepared

from corax.lock import lock
from corax.stop import STOP_SIGNALS

RECORDER = Path(__file__).parent / "record_packs.py"


@pytest.fixture(scope="module")
def small(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A plan of many short steps."""
    return interruptions.small_plan(prepared, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def trial(server: warm.Server, small: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A training in one process."""
    instants = random.Random(int(os.environ.get("CORAX_TEST_SEED", "0")))
    return Trial(server, small, tmp_path_factory.mktemp("trial") / "one", 1, instants=instants)


def test_kills_and_signals_in_one_process(trial: Trial) -> None:
    interruptions.repeat(2, lambda n: trial.kill("group"))
    interruptions.repeat(2, lambda n: trial.kill_in_checkpoint())
    interruptions.repeat(2, lambda n: trial.pause("group", STOP_SIGNALS[n]))
    trial.complete()
    assert trial.counts["other bytes"] == 0 and trial.counts["steps lost"] == 0


def test_damaged_checkpoints_are_named_and_not_used(trial: Trial, tmp_path: Path) -> None:
    cases = interruptions.damage_all(trial, tmp_path / "copy", files=2, kinds=1)
    assert cases == 2 and trial.counts["damage not named"] == trial.counts["other bytes"] == 0
    assert trial.counts["not from the other checkpoint"] == 0


@pytest.fixture(scope="module")
def pair(server: warm.Server, small: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A training on two ranks."""
    return Trial(server, small, tmp_path_factory.mktemp("trial") / "two", 2)


def test_kills_and_signals_with_two_ranks(pair: Trial) -> None:
    interruptions.repeat(1, lambda n: pair.kill("launcher"))
    interruptions.repeat(1, lambda n: pair.kill("rank"))
    for number, target in enumerate(TARGETS):
        interruptions.repeat(1, lambda n: pair.pause(target, STOP_SIGNALS[number % 2]))  # noqa: B023 - called at once
    pair.complete()
    assert pair.counts["other bytes"] == 0 and pair.counts["steps lost"] == 0


def test_no_rank_reads_checkpoints_that_another_training_may_still_change(pair: Trial) -> None:
    """The other one ends, and removes them, while the first rank waits for the lock."""
    interruptions.repeat(1, lambda n: pair.pause("launcher", signal.SIGTERM))
    with lock(pair.folder / "work"):
        pair.start().wait_for("held by another process")
        time.sleep(2)  # enough for a rank that does not wait to read them
        for path in pair.checkpoints:
            shutil.rmtree(path)
    pair.finish()
    pair.check()
    assert pair.counts["other bytes"] == 0


def test_another_number_of_ranks_goes_on_with_the_same_packs(
    server: warm.Server, small: Prepared, tmp_path: Path
) -> None:
    """Each pack is trained on once, with the same tokens, in the plan's order, by 2, 1 and 2 ranks in turn."""
    for ranks in (2, 1, 2):
        trained = recorded(server, small, tmp_path, ranks, stop=len(list(tmp_path.glob("packs-*"))) < 3)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = recorded(server, small, alone, 1, stop=False)
    assert trained == expected and [pack for pack, _ in trained] == list(range(4 * interruptions.STEPS))


def recorded(server: warm.Server, prepared: Prepared, folder: Path, ranks: int, stop: bool) -> list[tuple[int, str]]:
    """Train in `folder`, with `stop` until a signal comes; (pack, hash of ids) of all processes so far."""
    log = folder / "log"
    log.write_text("")
    options = (
        "--work",
        folder / "work",
        "--output",
        folder / "adapter",
        *interruptions.OPTIONS,
        *interruptions.EVERY_STEP,
    )
    program = [str(RECORDER), *map(str, [*prepared.train_options(), *options])]
    process = server.start_program(program, log=log, ranks=ranks, cwd=folder)
    if stop:
        process.wait_for("steps of")
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(interruptions.SECONDS) == (75 if stop else 0), log.read_text()
    found = []
    for path in folder.glob("packs-*"):
        rows = [line.split() for line in path.read_text().splitlines()]
        assert [int(pack) for pack, _ in rows] == sorted(int(pack) for pack, _ in rows)
        found += [(int(pack), digest) for pack, digest in rows]
    return sorted(found)
