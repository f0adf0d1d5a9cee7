"""Write a merged model as one GGUF file, for llama.cpp and what builds on it.

    python scripts/export.py --model results/runs/demo/merged --name demo --gguf.outtype q8_0 \\
        --output results/runs/demo/gguf

llama.cpp's own converter, pinned by its hash (docs/merge.md), does it in a process of its own, without network. The
file, model.gguf, holds weights, configuration, tokenizer and chat template; licences lie beside it.
"""

import argparse
import shutil
from pathlib import Path

from corax import cli
from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.export import Converter, check_model, check_tokens
from corax.settings.gguf import GgufSettings

FILE = "model.gguf"
LICENSES = ("LICENSE*", "NOTICE*")


def build_parser() -> argparse.ArgumentParser:
    """Options of this stage."""
    parser = cli.parser(__doc__, gguf=GgufSettings)
    parser.add_argument("--model", required=True, type=Path, help="folder of the merged model")
    parser.add_argument("--name", required=True, help="the model's name in the file's metadata")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the artifact `args.output`."""
    settings: GgufSettings = cli.settings(args, GgufSettings, "gguf")
    if settings.outtype is None:
        raise CoraxError("--gguf.outtype: none given, allowed: f32, f16, bf16, q8_0")
    check_model(open_artifact(args.model))
    converter = Converter.find()
    with Artifact(args.output, stage="export", inputs=[args.model], settings={"gguf": settings}) as artifact:
        converter.convert(args.model, args.name, settings.outtype, artifact.path / FILE)
        check_tokens(args.model, artifact.path / FILE)
        for file in [file for pattern in LICENSES for file in args.model.glob(pattern)]:
            shutil.copyfile(file, artifact.path / file.name)
        artifact.note(converter=converter.version, converter_sha256=converter.digest)


if __name__ == "__main__":
    cli.run(main, build_parser())
