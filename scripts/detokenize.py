"""Turn HDF5 token ids, JSON, Parquet, CSV, Arrow or plain text into the text to learn: JSON lines, one file a part.

    python scripts/detokenize.py --raw results/datasets/d/raw/000 --output results/datasets/d/text/000
    python scripts/detokenize.py --raw raw --output text --detokenize.record messages

Every line is a sample, all of one kind: {"prompt": …, "completion": …}, {"messages": [{"role": …, "content": …}, …]} or
{"text": …}. Files named train, validation and test keep their parts; rows of files with other names are divided by a
hash of the prompt. Token ids must be <SOS>, tokens, <EOS> and, on one side, <PAD>. Bad rows are skipped, listed in
bad_rows.jsonl and, above --detokenize.max_bad_share of all rows, stop the stage.
"""

import argparse
from pathlib import Path

from corax import cli
from corax.detokenize.stage import detokenize
from corax.settings.detokenize import DetokenizeSettings


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.parser(__doc__, detokenize=DetokenizeSettings)
    parser.add_argument("--raw", required=True, type=Path, help="folder with data files and their manifest")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the artifact."""
    detokenize(args.raw, args.output, cli.settings(args, DetokenizeSettings, "detokenize"))


if __name__ == "__main__":
    cli.run(main, build_parser())
