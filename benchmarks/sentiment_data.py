"""Sentences with a sentiment that people gave them, from the files of the VADER paper, which a Python package ships.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.1
    python benchmarks/sentiment_data.py vaderSentiment-3.3.1.tar.gz data

10,605 sentences of film reviews and 3,708 of product reviews, each with the mean of 20 people's ratings from -4 to 4
(Hutto and Gilbert, ICWSM 2014; MIT licence). A mean of at least 0.5 is "positive", of at most -0.5 "negative", and the
others are left out; so are repeated texts. Writes train.csv, validation.csv and test.csv with the columns text and
label, and unlabelled.txt: the sentences of the training part and of 5,190 of newspaper editorials.
"""

import argparse
import csv
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

SHA256 = "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af"
INNER = "vaderSentiment-3.3.1/additional_resources/hutto_ICWSM_2014.tar.gz"
LABELLED, UNLABELLED = ("movieReview", "amazonReview"), ("nytEditorial",)
CLEAR = 0.5


def write(package: Path, folder: Path) -> None:
    """The files in `folder`, from the source package of vaderSentiment 3.3.1."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in labelled(package).items():
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    texts = [text for text in _rated(package) if _part(text) == "train"]
    texts += [text for kind in UNLABELLED for text, _ in _read(package, kind)]
    (folder / "unlabelled.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def labelled(package: Path) -> dict[str, list[tuple[str, str]]]:
    """(text, label) of each part."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for text, rating in _rated(package).items():
        if abs(rating) >= CLEAR:
            parts[_part(text)].append((text, "positive" if rating > 0 else "negative"))
    return parts


def _rated(package: Path) -> dict[str, float]:
    """The mean rating of each text; raises SystemExit if the package is another one."""
    if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{package}: not the file whose sha256 is {SHA256}")
    return {text: rating for kind in LABELLED for text, rating in _read(package, kind)}


def _read(package: Path, kind: str) -> list[tuple[str, float]]:
    """(text, mean rating) of a file with the columns number, rating and text, between tabs."""
    with tarfile.open(package) as outer, outer.extractfile(INNER) as inner, tarfile.open(fileobj=inner) as archive:
        content = archive.extractfile(f"hutto_ICWSM_2014/{kind}Snippets_GroundTruth.txt")
        lines = [line.rstrip("\r\n").split("\t") for line in io.TextIOWrapper(content, encoding="utf-8")]
    return [(text, float(rating)) for _number, rating, text in lines]


def _part(text: str) -> str:
    """A tenth of the texts is for testing, a twentieth for validation, by a hash."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / 2**16
    return "test" if place < 0.1 else "validation" if place < 0.15 else "train"


def program(description: str, write: Callable[[Path, Path], None]) -> None:
    """The command line of a program that writes a folder from the source package."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="vaderSentiment-3.3.1.tar.gz")
    parser.add_argument("folder", type=Path, help="folder to write")
    arguments = parser.parse_args()
    write(arguments.package, arguments.folder)


if __name__ == "__main__":
    program(str(__doc__), write)
