"""The data stages measured: speed against other methods, memory against rows, and the cost of the real size.

    make bench-data
    python benchmarks/data.py --rows 100000

A stage runs as a program of its own at two sizes, a tenth of --rows and all of them: the difference gives the CPU
seconds of a row, the rest is the start of the program. Rows are an equal mix over the 32 configurations, repeated up to
the wanted number.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import h5py
import llama3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import row_by_row
from measure import SCRIPTS, Scaling, program, say, scaling, timed
from table import Row, write

sys.path.insert(0, str(SCRIPTS))

from corax import tokens
from corax.artifact import Artifact, open_artifact, sha256
from corax.pretokenize import encoders
from corax.settings.pretokenize import PretokenizeSettings
from corax.tasks.quantum.generator import layout, programs, topologies
from corax.tasks.quantum.generator.programs import CONFIGURATIONS, Configuration
from corax.tasks.quantum.generator.rng import stream
from corax.tasks.quantum.generator.topologies import FAMILIES
from corax.template import Template

ROWS, SHARDS, CORES = 56_000_000, 99, 72
"""The real size, and the node that it is predicted for."""
MB = 1e6
LLAMA_TOKENS = 483
"""Mean of a sample, in 96,000 published ones."""
LENGTHS = ([0, 0.05, 0.5, 0.74, 0.89, 0.95, 0.99, 0.9976, 1], [186, 304, 423, 512, 768, 884, 977, 1024, 1132])
"""Quantiles of their lengths in tokens."""
SHARD_ROWS = 100_000
"""Rows of the shards that the plan is measured on."""
EASY = [name for name in CONFIGURATIONS if name.startswith("SHORT") and name.endswith("UNWEIGHTED_8-16-32")]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the larger size (default: %(default)s)")
    rows = parser.parse_args().rows
    sizes = (rows // 10, rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = llama3_artifact(folder)

        say("generate")
        result = generator_rates()
        easy = scaling("generate", sizes, lambda size: generation(size, EASY, folder / f"easy-{size}"))
        mixed_sizes = (rows // 50, rows // 10)
        mixed = scaling(
            "generate", mixed_sizes, lambda size: generation(size, CONFIGURATIONS, folder / f"mixed-{size}")
        )
        result.append(Row("generate, whole stage, equal mix", 1 / mixed.row, "samples/s", at_least=3000))

        say("detokenize")
        for size in sizes:
            repeat_rows(folder / f"mixed-{mixed_sizes[1]}", size, folder / f"raw-{size}")
        raw, text, ids = (folder / f"{kind}-{sizes[0]}" for kind in ("raw", "text", "tokens"))
        detokenize = scaling(
            "detokenize", sizes, lambda size: ["--raw", folder / f"raw-{size}", "--output", folder / f"text-{size}"]
        )
        result += against_row_by_row(raw, text, detokenize)

        say("pretokenize")
        pretokenize = scaling(
            "pretokenize",
            sizes,
            lambda size: ["--text", folder / f"text-{size}", "--model", model, "--output", folder / f"tokens-{size}"],
        )
        result += against_tokenizers(text, model, pretokenize) + token_files(ids)

        say("plan")
        for size in (*sizes, 10 * rows):
            length_shards(folder / f"lengths-{size}", size, model)
        few = scaling("plan", sizes, lambda size: planning(folder, size, model, 8192))
        plan = scaling("plan", (rows, 10 * rows), lambda size: planning(folder, size, model, 8192))
        program("plan", *planning(folder, rows, model, 1280))
        result += packing(folder, rows, plan)

    stages = {"generate": mixed, "detokenize": detokenize, "pretokenize": pretokenize, "plan": plan}
    for stage, measured in {**stages, "generate": easy, "plan": few}.items():
        result += memory(stage, measured)
    write("data", [*result, *prediction(stages)])


def llama3_artifact(folder: Path) -> Path:
    """A model artifact with Llama-3's tokenizer."""
    with Artifact(folder / "model", stage="download") as artifact:
        llama3.model_folder(artifact.path)
    return folder / "model"


def generator_rates() -> list[Row]:
    """Samples a second of each configuration, without topologies and files, and of an equal mix."""
    seconds, result = [], []
    for family in FAMILIES:
        patterns = topologies.draw(family, 400 if "LONG" in family else 100, stream("bench", family))
        for name in (name for name in CONFIGURATIONS if Configuration.parse(name).family == family):
            draw = (
                patterns,
                FAMILIES.index(family),
                0,
                Configuration.parse(name),
                stream("bench", name),
                layout.empty(1600),
            )
            samples = programs.draw(*draw)[0]
            (spent,) = timed(lambda draw=draw: programs.draw(*draw))
            seconds.append(spent / samples)
            result.append(Row(f"generator, {name}", samples / spent, "samples/s"))
    mix = len(seconds) / sum(seconds)
    return [*result, Row("generator, equal mix of the 32", mix, "samples/s", at_least=3000)]


def generation(samples: int, configurations: Sequence[str], output: Path) -> list[object]:
    """Arguments of `generate`: one shard, as many topologies in it as at the real size."""
    held_out = ("--generate.validation_samples", 32, "--generate.test_samples", 32)
    counts = ("--generate.topologies", 500, "--generate.samples", samples)
    return [
        "--shard",
        0,
        "--shards",
        1,
        "--output",
        output,
        *counts,
        *held_out,
        "--generate.configurations",
        *configurations,
    ]


def repeat_rows(source: Path, rows: int, output: Path) -> None:
    """A raw artifact of `rows` training rows: those of `source` again and again."""
    with h5py.File(source / "train.h5") as file:
        base = layout.Columns(*(file[name][:] for name in layout.Columns._fields))
    with Artifact(output, stage="generate") as artifact:
        for part, count in (("train", rows), ("validation", 0), ("test", 0)):
            with layout.Writer(artifact.path / f"{part}.h5", count, "gzip") as writer:
                for start in range(0, count, len(base.code)):
                    writer.append(layout.Columns(*(column[: count - start] for column in base)))


def against_row_by_row(raw: Path, text: Path, measured: Scaling) -> list[Row]:
    """Detokenize beside the loop over rows, and beside copying as many bytes in memory as it reads and writes."""
    rate = 1 / measured.row
    with h5py.File(raw / "train.h5") as file:
        size = sum(file[name].dtype.itemsize * file[name].shape[1] for name in ("state", "code"))
    size += (text / "train.jsonl").stat().st_size / measured.sizes[0]
    block = np.ones(int(64 * MB), np.int8)
    (copying,) = timed(block.copy, times=9)
    slow = row_by_row.rows_per_second(raw / "train.h5")
    return [
        Row("detokenize, both columns", rate, "rows/s", at_least=100_000),
        Row("detokenize", rate / slow, "times", "row by row, same run", at_least=300),
        Row("row by row", slow, "rows/s"),
        Row("detokenize", size * rate / MB, "MB/s", "bytes read and written"),
        Row("detokenize", size * rate * copying / 64e6, "times", "copying as many bytes in memory"),
    ]


def against_tokenizers(text: Path, model: Path, measured: Scaling) -> list[Row]:
    """Tokenizing alone and the whole stage, beside `tokenizers` and tiktoken, on the same texts."""
    with (text / "train.jsonl").open() as file:
        samples = [json.loads(line) for line in islice(file, 4000)]
    texts = [sample[key] for sample in samples for key in ("prompt", "completion")]
    size = sum(len(text.encode()) for text in texts)
    headers = PretokenizeSettings()
    template = Template(model, headers.prompt_header, headers.completion_header)
    fast = encoders.choose(template)
    tiktoken = llama3.tiktoken_encoding()
    reference, own, tik = timed(
        lambda: template.tokenizer.encode_batch(texts, add_special_tokens=False),
        lambda: fast.encode(texts),
        lambda: [tiktoken.encode_ordinary(text) for text in texts],
    )
    stage = measured.row * len(samples)
    return [
        Row("tokenizers encode_batch", size / reference / MB, "MB/s"),
        Row("tiktoken encode_ordinary", size / tik / MB, "MB/s"),
        Row(f"tokenizing alone ({fast.name})", size / own / MB, "MB/s"),
        Row("tokenizing alone", reference / own, "times", "tokenizers encode_batch, same run", at_least=25),
        Row("tokenizing alone", tik / own, "times", "tiktoken, same run"),
        Row("pretokenize, whole stage", size / stage / MB, "MB/s"),
        Row("pretokenize, whole stage", reference / stage, "times", "tokenizers encode_batch alone", at_least=12),
        Row("pretokenize, whole stage", tik / stage, "times", "tiktoken alone"),
    ]


def token_files(folder: Path) -> list[Row]:
    """Size, writing and reading of token ids as Parquet."""
    path = folder / "train.parquet"
    table = pq.read_table(path).slice(0, 20 * tokens.ROW_GROUP_ROWS).combine_chunks()
    count = sum(table["length"].to_pylist())
    shards = tokens.TokenShards([folder], "train")

    def write_table() -> None:
        with pq.ParquetWriter(pa.BufferOutputStream(), table.schema, compression="zstd") as writer:
            writer.write_table(table, row_group_size=tokens.ROW_GROUP_ROWS)

    writing, reading = timed(write_table, lambda: [shards.row(0, row) for row in range(len(table))], times=1)
    facts = open_artifact(folder).facts
    total, rows = facts["tokens"]["train"], facts["rows"]["train"]
    return [
        Row("token file", path.stat().st_size / total, "bytes/token", at_most=0.7),
        Row("writing token ids", count / writing / MB, "million tokens/s"),
        Row("reading token ids, as training does", count / reading / MB, "million tokens/s"),
        Row(
            "length of a sample",
            100 * abs(total / rows / LLAMA_TOKENS - 1),
            "% off",
            f"{LLAMA_TOKENS} Llama-3 tokens",
            at_most=3,
        ),
    ]


def length_shards(folder: Path, rows: int, model: Path) -> None:
    """Token shards without ids, which the plan does not read: lengths distributed as published."""
    tokenizer = sha256(model / "tokenizer.json")
    random = np.random.default_rng(0)
    for shard in range(-(-rows // SHARD_ROWS)):
        with Artifact(folder / f"{shard:03}", stage="pretokenize") as artifact:
            for part, count in (("train", min(rows, SHARD_ROWS)), ("validation", 100), ("test", 1)):
                lengths = np.interp(random.random(count), *LENGTHS).astype(np.int32)
                ids = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.uint32()))
                table = pa.table([ids, lengths * 46 // 100, lengths], schema=tokens.SCHEMA)
                pq.write_table(table, artifact.path / f"{part}.parquet", row_group_size=tokens.ROW_GROUP_ROWS)
            artifact.note(tokenizer_sha256=tokenizer, template={})


def planning(folder: Path, rows: int, model: Path, max_length: int) -> list[object]:
    """Arguments of `plan` for the shards in `folder`/lengths-`rows`."""
    shards = sorted((folder / f"lengths-{rows}").iterdir())
    output = folder / f"plan-{rows}-{max_length}"
    return ["--model", model, "--tokens", *shards, "--output", output, "--plan.max_length", max_length]


def packing(folder: Path, rows: int, plan: Scaling) -> list[Row]:
    """How full packs are, and how fast they are made."""
    fill = {length: 100 * open_artifact(folder / f"plan-{rows}-{length}").facts["fill"] for length in (8192, 1280)}
    return [
        Row("packs of 8192 tokens", fill[8192], "% full", at_least=98.5),
        Row("packs of 1280 tokens", fill[1280], "% full", at_least=98),
        Row("plan", 1 / plan.row, "samples/s"),
    ]


def memory(stage: str, measured: Scaling) -> list[Row]:
    """Peak memory at both sizes."""
    small, large = (cost.memory for cost in measured.costs)
    names = [f"{stage}, peak memory at {size:,} rows" for size in measured.sizes]
    return [
        Row(names[0], small / MB, "MB"),
        Row(names[1], large / MB, "MB", at_most=1000),
        Row(names[1], large / small, "times", f"at {measured.sizes[0]:,} rows", at_most=1.2),
    ]


def prediction(stages: dict[str, Scaling]) -> list[Row]:
    """CPU time of the real size, and hours on a node where every shard of a stage is a job on one core."""
    shard = ROWS / SHARDS
    waves = -(-SHARDS // CORES)
    result, hours = [], 0.0
    for stage, measured in stages.items():
        jobs, rounds, rows = (1, 1, ROWS) if stage == "plan" else (SHARDS, waves, shard)
        seconds = measured.seconds(rows)
        hours += rounds * seconds / 3600
        result.append(Row(f"predicted: {stage}, one job of {rows:,.0f} rows", seconds, "s"))
        result.append(Row(f"predicted: {stage}, all jobs", jobs * seconds / 3600, "core hours"))
    against = f"{ROWS:,} rows, {SHARDS} shards, {waves} rounds"
    return [*result, Row(f"predicted: all stages on {CORES} cores", hours, "hours", against, at_most=1)]


if __name__ == "__main__":
    main()
