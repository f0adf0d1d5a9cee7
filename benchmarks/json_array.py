"""Detokenize one JSON array beside the same rows as JSON lines: CPU seconds of a row, and memory.

    python benchmarks/json_array.py --rows 200000

The rows are instructions of the length of alpaca_data.json's, the array is indented as that file is.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from measure import SCRIPTS, say, scaling
from table import Row, write

sys.path.insert(0, str(SCRIPTS))

from corax.artifact import Artifact

WORDS = (Path(__file__).parent / "words.txt").read_text().split()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the larger size (default: %(default)s)")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {}
        for suffix in ("jsonl", "json"):
            say(suffix)
            for size in (rows // 10, rows):
                make(folder / f"{suffix}-{size}", suffix, size)
            found[suffix] = scaling(
                "detokenize",
                (rows // 10, rows),
                lambda size, suffix=suffix: [
                    *("--raw", folder / f"{suffix}-{size}", "--output", folder / "text"),
                    "--detokenize.record=alpaca",
                ],
            )
        size = (folder / f"json-{rows}" / "rows.json").stat().st_size / rows
    lines, array = found["jsonl"], found["json"]
    growth = array.costs[1].memory - array.costs[0].memory
    write(
        "json-array",
        [
            Row("detokenize, JSON lines", 1 / lines.row, "rows/s"),
            Row("detokenize, one array", 1 / array.row, "rows/s"),
            Row("detokenize, one array", size / array.row / 1e6, "MB/s"),
            Row("detokenize, one array", lines.row / array.row, "times", "JSON lines, same run", at_least=0.7),
            Row("memory, ten times the rows", growth / 1e6, "MB more", at_most=20),
        ],
    )


def make(folder: Path, suffix: str, rows: int) -> None:
    """A raw artifact of one file, as one array or as lines."""
    words = random.Random(0)

    def text(mean: int) -> str:
        return " ".join(words.choices(WORDS, k=words.randint(1, 2 * mean)))

    samples = [{"instruction": text(10), "input": text(3), "output": text(45)} for _ in range(rows)]
    with Artifact(folder, stage="download") as artifact:
        path = artifact.path / f"rows.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(samples, indent=4))
        else:
            path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))


if __name__ == "__main__":
    main()
