"""The configuration: what is wrong is said in one line, before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from corax import config
from corax.errors import CoraxError

DEFAULT = Path(__file__).parent.parent / "config.yaml"
VALID = """\
models:
  tiny: {source: local, path: .}
datasets:
  data:
    shards: 2
    generate: {samples: 100}
runs:
  demo:
    model: tiny
    dataset: data
    lora: {r: 16}
    train: {learning_rate: 1e-3}
"""
SHA = "0" * 64


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return config.load(path)


def test_the_embedded_default_is_valid() -> None:
    loaded = config.load(DEFAULT)
    assert loaded.runs["demo"].model in loaded.models


@pytest.mark.parametrize("rate", ["1e-3", "1.0e-3", "0.001", "'1e-3'", "1E-3", "+1.0e-3"])
def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path, rate: str) -> None:
    loaded = load(tmp_path, VALID.replace("1e-3", rate))
    assert loaded.runs["demo"].train.learning_rate == 0.001


def test_what_is_not_given_has_its_default(tmp_path: Path) -> None:
    run = load(tmp_path, VALID).runs["demo"]
    assert (run.lora.r, run.lora.lora_alpha, run.plan.max_length, run.plan.packing) == (16, 32.0, 2048, True)


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("", ("user", "assistant")),
        ("task: quantum", ("{quantum state}", "{code}")),
        ("pretokenize: {prompt_header: product}", ("product", "assistant")),
        ("pretokenize: {chunk_length: 8}", ("user", "assistant")),
    ],
)
def test_roles_are_those_of_the_task(tmp_path: Path, text: str, roles: tuple[str, str]) -> None:
    pretokenize = load(tmp_path, VALID.replace("shards: 2", f"shards: 2\n    {text}")).datasets["data"].pretokenize
    assert (pretokenize.prompt_header, pretokenize.completion_header) == roles


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = VALID.replace("lora: {r: 16}", "lora: &lora {r: 16}") + (
        "  other:\n    model: tiny\n    dataset: data\n    lora:\n      <<: *lora\n      r: 32\n"
    )
    assert load(tmp_path, text).runs["other"].lora.r == 32


def swap(old: str, new: str) -> str:
    """The valid configuration with one thing changed."""
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # unknown keys
        (swap("{r: 16}", "{rank: 16}"), ["runs.demo.lora.rank", "unknown key"]),
        (swap("    dataset: data\n", "    dataset: data\n    loraa: {}\n"), ["runs.demo.loraa", "unknown key"]),
        (VALID + "sweep: {}\n", ["sweep", "unknown key"]),
        (swap("path: .}", "path: ., colour: 3}"), ["models.tiny.colour", "unknown key"]),
        (swap("{r: 16}", "{r: 16}\n    sample: {held_out_prompts: 0}"), ["runs.demo.sample asks for nothing"]),
        # beyond what arrays and generators of random numbers take
        (swap("{r: 16}", "{r: 16}\n    plan: {max_length: 1000000000}"), ["runs.demo.plan.max_length", "16777216"]),
        (swap("{learning_rate: 1e-3}", "{seed: 4294967296}"), ["runs.demo.train.seed", "2147483648"]),
        # wrong types
        (swap("{r: 16}", "{r: sixteen}"), ["runs.demo.lora.r", "integer", "'sixteen'"]),
        (swap("{r: 16}", "{r: 16.5}"), ["runs.demo.lora.r", "integer", "16.5"]),
        (swap("{r: 16}", "{r: yes}"), ["runs.demo.lora.r", "integer", "True"]),
        (swap("{r: 16}", "[16]"), ["runs.demo.lora", "[16]"]),
        (swap("1e-3", "fast"), ["runs.demo.train.learning_rate", "number", "'fast'"]),
        (swap("1e-3", "2024-01-01"), ["runs.demo.train.learning_rate", "datetime.date(2024, 1, 1)"]),
        (swap("{r: 16}", "{target_modules: q_proj}"), ["runs.demo.lora.target_modules", "list", "'q_proj'"]),
        (swap("path: .", "path: 1.10"), ["models.tiny.path", "string", "1.1"]),
        (swap("learning_rate: 1e-3", "lr_scheduler_type: off"), ["lr_scheduler_type", "'cosine'", "False"]),
        # out of range
        (swap("{r: 16}", "{r: 0}"), ["runs.demo.lora.r", "greater than or equal to 1", "0"]),
        (swap("1e-3", "-1e-3"), ["runs.demo.train.learning_rate", "greater than 0", "-0.001"]),
        (swap("1e-3", ".inf"), ["runs.demo.train.learning_rate", "finite", "inf"]),
        (swap("1e-3", ".nan"), ["runs.demo.train.learning_rate", "nan"]),
        (swap("learning_rate: 1e-3", "lr_scheduler_type: cosin"), ["lr_scheduler_type", "'linear'", "'cosin'"]),
        (swap("shards: 2", "shards: 0"), ["datasets.data.shards", "0"]),
        (swap("samples: 100", "samples: 1"), ["datasets.data: generate.samples is 1 for 2 shards: each needs one"]),
        (swap("{samples: 100}", "{configurations: []}"), ["datasets.data.generate.configurations", "at least 1"]),
        (swap("{samples: 100}", "{configurations: [TALL]}"), ["generate.configurations.0", "pattern", "'TALL'"]),
        # missing keys and files
        (swap("    model: tiny\n", ""), ["runs.demo.model", "missing"]),
        (swap("source: local, path: .", "source: local"), ["models.tiny.path", "missing"]),
        (swap("source: local, path: .", "path: ."), ["models.tiny.source", "missing"]),
        (swap("    generate: {samples: 100}\n", ""), ["datasets.data", "exactly one of `generate` and `download`"]),
        (swap("path: .", "path: /nowhere/model"), ["models.tiny.path", "/nowhere/model does not exist"]),
        (
            swap("generate: {samples: 100}", "download: {source: local, path: 'tests/{shard}.h5'}"),
            ["datasets.data.download.path", "tests/0.h5 does not exist"],
        ),
        (VALID[: VALID.index("runs")], ["runs", "missing"]),
        (VALID[: VALID.index("runs")] + "runs: {}\n", ["runs", "at least 1"]),
        # sources
        (swap("source: local", "source: disk"), ["models.tiny.source", "'local'", "'disk'"]),
        (
            swap("source: local, path: .", "source: hub, repository: a/b, revision: main"),
            ["models.tiny.revision", "pattern", "'main'"],
        ),
        (
            swap("generate: {samples: 100}", f"download: {{source: url, url: 'http://x/y', sha256: ['{SHA}']}}"),
            ["datasets.data", "1 entries for 2 shards"],
        ),
        (
            swap("generate: {samples: 100}", "download: {source: url, url: 'http://x/y', sha256: [abc, abc]}"),
            ["datasets.data.download.sha256.0", "pattern", "'abc'"],
        ),
        (
            swap("generate: {samples: 100}", "download: {source: local, path: .}"),
            ["datasets.data", "download must name {shard}", "all 2 shards would be the same"],
        ),
        (
            swap("generate: {samples: 100}", "download: {source: local, path: 'tests/{shard}', new_tokens: [a]}"),
            ["datasets.data", "only a model has tokens", "models.<name>.new_tokens"],
        ),
        # names
        (swap("model: tiny", "model: large"), ["runs.demo.model", "'large'", "allowed: tiny"]),
        (swap("dataset: data", "dataset: dada"), ["runs.demo.dataset", "'dada'", "allowed: data"]),
        (swap("  demo:", "  Demo run:"), ["runs.Demo run", "pattern"]),
        (swap("  demo:", "  ../demo:"), ["runs.../demo", "pattern"]),
        (swap("  demo:", "  demo.json:"), ["runs.demo.json", "may not end in"]),
        (swap("  demo:", "  no:"), ["runs", "string", "False"]),
        # YAML
        (swap("{r: 16}", "{r: 16, r: 8}"), ["line 11", "'r' is given twice"]),
        (VALID + "runs: {}\n", ["line 13", "'runs' is given twice"]),
        (swap("{r: 16}", "{r: 010}"), ["line 11", "010", "base 10"]),
        (swap("{r: 16}", "{r: 1:30}"), ["line 11", "1:30", "base 10"]),
        (swap("{r: 16}", "{r: 16"), ["line 12"]),
        (swap("lora:", "lora:\t- x:"), ["line 11"]),
        (swap("{r: 16}", "*other"), ["line 11", "other"]),
        (swap("{r: 16}", "!!python/object/apply:os.system [id]"), ["line 11", "constructor"]),
        (VALID + "? [a]\n: b\n", ["line 13"]),
        ("", ["mapping"]),
        ("- a\n", ["mapping"]),
        ("models: \0", ["YAML"]),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(CoraxError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "config.yaml"))
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 400


def no_file(path: Path) -> None:
    """Nothing there."""


@pytest.mark.parametrize("make", [no_file, Path.mkdir, lambda path: path.write_bytes(b"models: \xff\xfe")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "config.yaml"
    make(path)
    with pytest.raises(CoraxError) as error:
        config.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_second_file_changes_the_first_as_snakemake_merges_them(tmp_path: Path) -> None:
    texts = [VALID, "datasets: {data: {generate: {configurations: [LONG_DEG1_2D_UNWEIGHTED_6-6-6]}}}\n"]
    texts += ["runs:\n  demo: {lora: {r: 4}}\n  other: {model: tiny, dataset: data, sweep: {lora.r: [1, 2]}}\n"]
    merged: dict[str, Any] = {}
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
        update_config(merged, yaml.safe_load(text))
    loaded = config.load(*paths)
    assert loaded == config.check(merged)
    assert (list(loaded.runs), loaded.runs["demo"].lora.r) == (["demo", "other-r1", "other-r2"], 4)


def test_a_checked_configuration_is_constant() -> None:
    loaded = config.check(yaml.safe_load(VALID))
    with pytest.raises(ValueError, match="frozen"):
        loaded.runs["demo"].lora.r = 8  # type: ignore[misc]
