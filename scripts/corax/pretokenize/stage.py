"""Turns the text of one shard into token shards, in constant memory."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from corax.artifact import Artifact, open_artifact, sha256
from corax.errors import CoraxError
from corax.lengths import plot_lengths
from corax.pretokenize import encoders
from corax.pretokenize.contract import Contract
from corax.pretokenize.encoders import Encoder, Reference
from corax.pretokenize.rows import cut, join
from corax.pretokenize.samples import kind_of, read_samples
from corax.pretokenize.shard import ShardWriter
from corax.progress import Progress
from corax.settings.pretokenize import PretokenizeSettings
from corax.template import Template
from corax.tokens import PARTS

log = logging.getLogger("corax")


def pretokenize(text: Path, model: Path, output: Path, settings: PretokenizeSettings) -> None:
    """Write the token shard `output` from the text artifact `text` with the tokenizer of the model folder `model`.

    Raises CoraxError for a bad line, an unusable tokenizer, a broken token contract, or if there is no line at all.
    """
    kind = kind_of(text)
    if settings.chunk_length and kind != "text":
        raise CoraxError(
            f"pretokenize.chunk_length: only plain texts are cut, the samples of {text} are of kind {kind}"
        )
    open_artifact(model)
    template = Template(model, settings.prompt_header, settings.completion_header, kind)
    with Artifact(output, stage="pretokenize", inputs=[text, model], settings={"pretokenize": settings}) as artifact:
        write_shard(text, artifact, template, encoders.choose(template), settings.chunk_length)
        artifact.note(tokenizer_sha256=sha256(model / "tokenizer.json"))


def write_shard(
    text: Path, artifact: Artifact, template: Template, encoder: Encoder, chunk_length: int | None = None
) -> None:
    """Write the Parquet file of each part and the plot of lengths into `artifact`, and note its facts."""
    # Reuses the memory of the block before, where Arrow's own pools ask for fresh pages: a fifth faster.
    pa.set_memory_pool(pa.system_memory_pool())
    files = {part: text / f"{part}.jsonl" for part in PARTS}
    for path in files.values():
        if not path.is_file():
            raise CoraxError(f"{path}: missing, a text folder has {', '.join(file.name for file in files.values())}")
    size = sum(path.stat().st_size for path in files.values())
    if size == 0:
        raise CoraxError(f"{text}: the dataset is empty, its files have no lines")
    written, compared = {}, 0
    with Progress("pretokenize", size, "byte") as progress:
        for part, path in files.items():
            with ShardWriter(artifact.path / f"{part}.parquet", template.kind) as writer:
                compared += write_part(path, writer, template, encoder, progress, chunk_length)
            written[part] = writer
    total, targets = (
        np.concatenate([getattr(writer, name) for writer in written.values()]) for name in ("lengths", "target_counts")
    )
    counts = {"tokens without loss": np.bincount(total - targets), "all tokens": np.bincount(total)}
    plot_lengths(artifact.path / "lengths.png", counts)
    artifact.note(
        rows={part: len(writer.lengths) for part, writer in written.items()},
        tokens={part: int(writer.lengths.sum(dtype=np.int64)) for part, writer in written.items()},
        completion_tokens={part: int(writer.target_counts.sum(dtype=np.int64)) for part, writer in written.items()},
        template=template.facts,
        tokenizer=encoder.name,
        compared_rows=compared,
    )
    log.info("pretokenize: %d rows with %s, %d compared, longest %d", len(total), encoder.name, compared, total.max())


def write_part(
    text: Path,
    writer: ShardWriter,
    template: Template,
    encoder: Encoder,
    progress: Progress,
    chunk_length: int | None,
) -> int:
    """Tokenize the lines of one file; how many of them were compared with `tokenizers`."""
    contract, compared = Contract(template), 0
    reference = Reference(template)
    for samples, texts in read_samples(text, template):
        used = encoder
        try:
            encoded = used.encode(samples.texts)
        except ValueError:  # fastokens has no token for a text: find out which, and whether `tokenizers` has one
            used = reference
            encoded = used.encode(samples.texts)
        rows = join(template, samples, encoded)
        compared += contract.check(samples, texts, rows, every=used.name == Reference.name)
        writer.write(cut(rows, chunk_length) if chunk_length else rows)
        progress.advance(samples.size)
    return compared
