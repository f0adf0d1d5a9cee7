"""Fidelities of random quantum programs against pytheusQ, the simulator of arXiv 2406.02470.

    make bench-evaluate

From a program's text to its fidelities for N = 0 … 4 with one of the 20 targets: the same programs, graphs and targets
for both, in one process, by turns. Every program is new. Once both keep the target states, and once pytheusQ makes them
for every program, as the paper's scripts do. pytheusQ is used where it is installed (envs/pytheus.txt).
"""

import argparse
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import h5py
from table import Row, write

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

from corax import vocabulary  # noqa: E402 - found below scripts/
from corax.settings.generate import GenerateSettings  # noqa: E402
from corax.tasks.quantum import language, scoring, targets  # noqa: E402
from corax.tasks.quantum.generator.dataset import Shard, generate  # noqa: E402
from corax.tasks.quantum.generator.programs import CONFIGURATIONS  # noqa: E402

TURNS = 8


def main() -> None:
    """Write benchmarks/results/evaluate.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2000, help="random programs (default: %(default)s)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # pytheusQ divides by zero
    write("evaluate", rows(args.programs))


def rows(count: int) -> list[Row]:
    """CPU seconds a program, and the largest difference."""
    classes = list(targets.CLASSES)
    jobs = [(text, classes[number % len(classes)]) for number, text in enumerate(random_programs(count))]
    scoring.judge("e(0,1,0,0,1)", targets.reference("ghz"))  # compiles
    for name in classes:
        scoring.judge("", targets.reference(name))
    what = f"{len(jobs)} random programs, N = 0 … 4"
    try:
        from pytheus import fancy_classes
    except ImportError:
        print("pytheusQ is missing: its comparison is left out (make bench-evaluate installs it)")
        _, seconds = timed(our_fidelities, jobs)
        return [Row("fidelities of a program", 1e6 * seconds / len(jobs), "CPU µs", what)]
    states = {(name, size): pytheus_target(fancy_classes, name, size) for name in classes for size in targets.SIZES}

    def with_kept_targets(text: str, name: str) -> list[float]:
        program = language.parse(text)
        return [pytheus_fidelity(fancy_classes, program, size, states[name, size]) for size in targets.SIZES]

    def with_own_targets(text: str, name: str) -> list[float]:
        program = language.parse(text)
        return [
            pytheus_fidelity(fancy_classes, program, size, pytheus_target(fancy_classes, name, size))
            for size in targets.SIZES
        ]

    pairs, times, nonzero = [], [], 0
    for turn in range(TURNS):
        part = jobs[turn::TURNS]
        ours, our_seconds = timed(our_fidelities, part)
        reference, kept_seconds = timed(with_kept_targets, part)
        _, made_seconds = timed(with_own_targets, part)
        pairs += [pair for job, *both in zip(part, ours, reference, strict=True) for pair in comparable(job, *both)]
        nonzero += sum(any(fidelities) for fidelities in ours)
        times.append([seconds / len(part) for seconds in (our_seconds, kept_seconds, made_seconds)])
    return [
        Row("fidelities of a program", 1e6 * median(ours for ours, _, _ in times), "CPU µs", what),
        Row("pytheusQ, target states kept", 1e6 * median(kept for _, kept, _ in times), "CPU µs", what),
        Row("pytheusQ, target states made each time", 1e6 * median(made for *_, made in times), "CPU µs", what),
        Row(
            "fidelities of a program",
            median(made / ours for ours, _, made in times),
            "times",
            f"pytheusQ 1.2.19 as the paper's scripts use it, median of {TURNS} turns of the same run",
            at_least=100,
        ),
        Row(
            "fidelities of a program",
            median(kept / ours for ours, kept, _ in times),
            "times",
            "pytheusQ 1.2.19 with its target states kept",
            at_least=100,
        ),
        Row(
            "largest difference",
            max(abs(a - b) for a, b in pairs),
            "fidelity",
            f"pytheusQ 1.2.19, graphs without self-loops; {nonzero} of the programs have a fidelity above 0",
            at_most=1e-9,
        ),
    ]


def random_programs(count: int) -> list[str]:
    """Programs of the generator, of all 32 configurations in turn."""
    settings = GenerateSettings(
        configurations=list(CONFIGURATIONS), topologies=400, samples=count, validation_samples=1, test_samples=1
    )
    tokens = vocabulary.load("quantum").tokens
    with tempfile.TemporaryDirectory(prefix="corax-bench-") as folder:
        generate(settings, Shard(0, 1), Path(folder))
        with h5py.File(Path(folder) / "train.h5") as file:
            return ["".join(tokens[number] for number in row[row > 2]) for row in file["code"][:]]


def our_fidelities(text: str, name: str) -> list[float]:
    """As they are written into evaluation.json."""
    return list(scoring.judge(text, targets.reference(name)).fidelities)


def comparable(job: tuple[str, str], ours: list[float], reference: list[float]) -> list[tuple[float, float]]:
    """Both fidelities where no edge is a self-loop: such a graph counts 0 here, and pytheusQ leaves the edge out."""
    text, name = job
    reasons = scoring.judge(text, targets.reference(name)).reasons
    return [(a, b) for a, b, why in zip(ours, reference, reasons, strict=True) if why is not language.Reason.SELF_LOOP]


def timed(work: Callable[[str, str], list[float]], jobs: list[tuple[str, str]]) -> tuple[list[list[float]], float]:
    """(results, CPU seconds)."""
    began = time.process_time()
    results = [work(*job) for job in jobs]
    return results, time.process_time() - began


def pytheus_target(fancy_classes: Any, name: str, size: int) -> Any:
    """A target state of pytheusQ, made once for all programs as ours are."""
    vertices = language.vertices(size)
    kets = targets.target_state(name, size)
    colours = [[ket >> 2 * (vertices - 1 - vertex) & 3 for vertex in range(vertices)] for ket in kets]
    return fancy_classes.State(
        [tuple(enumerate(each)) for each in colours], amplitudes=list(kets.values()), normalize=True
    )


def pytheus_fidelity(fancy_classes: Any, program: language.Program, size: int, target: Any) -> float:
    """The fidelity as pytheusQ computes it; 0 where it stops with an error, or has no state."""
    weights: Counter[tuple[int, ...]] = Counter()
    for p, q, c, d, weight in language.edges(program, size):
        weights[(p, q, c, d) if p < q else (q, p, d, c)] += weight
    try:
        graph = fancy_classes.Graph({edge: weight for edge, weight in weights.items() if weight})
        graph.getState()
        found = float(abs(graph.state @ target) ** 2) if graph.state.kets else 0.0
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        return 0.0
    return found if math.isfinite(found) else 0.0


if __name__ == "__main__":
    main()
