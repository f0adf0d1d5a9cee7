"""Turn text into the model's token ids: one Parquet file a part, and a plot of the lengths.

    python scripts/pretokenize.py --text results/datasets/d/text/000 --model results/models/m \\
        --output results/datasets/d/tokens/m/000

The lines are prompts and completions, conversations or plain texts, as the text's manifest says. A row is a sample in
the model's template (Llama-3 headers, ChatML or plain text, by the special tokens that the tokenizer has); loss is on
the completion, on the assistant's turns, or on all. Text that spells a special token stays text. fastokens tokenizes
where it is exact, and every hundredth and each unusual line is compared with `tokenizers`; what must hold between
training and inference is checked on the ids that are written. One process uses one core: run shards side by side.
"""

import argparse
import os
from pathlib import Path

from corax import cli
from corax.pretokenize.stage import pretokenize
from corax.settings.pretokenize import PretokenizeSettings


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.parser(__doc__, pretokenize=PretokenizeSettings)
    parser.add_argument("--text", required=True, type=Path, help="folder with JSON lines and their manifest")
    parser.add_argument("--model", required=True, type=Path, help="model folder; only its tokenizer is used")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the artifact."""
    pretokenize(args.text, args.model, args.output, cli.settings(args, PretokenizeSettings, "pretokenize"))


if __name__ == "__main__":
    # Both tokenizers would start a thread for every core of the machine.
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    cli.run(main, build_parser())
