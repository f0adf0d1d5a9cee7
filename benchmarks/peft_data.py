"""Data in Alpaca's and in Dolly's format with answers that can be checked, for a model of 135M parameters.

    python benchmarks/peft_data.py vaderSentiment-3.3.1.tar.gz data

Alpaca's: three tasks on lists of words (sort, reverse, capitals), made by rule. Dolly's: real sentences of film and
product reviews with the sentiment that people gave them (sentiment_data.py). The same bytes each time.
"""

import json
import random
from pathlib import Path

import sentiment_data

WORDS = (Path(__file__).parent / "words.txt").read_text().split()
TASKS = (
    ("Sort the words alphabetically.", sorted),
    ("Write the words in reverse order.", lambda words: list(reversed(words))),
    ("Write the words in capital letters.", lambda words: [word.upper() for word in words]),
)
QUESTION = "Is the sentiment of this review positive or negative?"
SAMPLES = 6000


def write(package: Path, folder: Path) -> None:
    """`alpaca.jsonl` and `dolly.jsonl` in the folder, SAMPLES lines each."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    _write_lines(folder / "alpaca.jsonl", [_task(chance, number) for number in range(SAMPLES)])
    parts = sentiment_data.labelled(package)
    reviews = [row for part in ("train", "validation", "test") for row in parts[part]]
    chosen = chance.sample(reviews, SAMPLES)
    rows = [{"instruction": QUESTION, "context": text, "response": label} for text, label in chosen]
    _write_lines(folder / "dolly.jsonl", rows)


def _task(chance: random.Random, number: int) -> dict[str, str]:
    instruction, solve = TASKS[number % len(TASKS)]
    words = chance.sample(WORDS, chance.randint(4, 6))
    return {"instruction": instruction, "input": ", ".join(words), "output": ", ".join(solve(words))}


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    sentiment_data.program(str(__doc__), write)
