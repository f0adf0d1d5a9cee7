"""GGUF export: tiny models of several families through llama.cpp's own converter, and read back.

The converter and what it needs lie apart from the environment: `make work/packages/gguf`.
"""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import yaml

from corax import config
from corax.artifact import Artifact, open_artifact, read_manifest
from corax.containers import converter, names
from corax.errors import CoraxError

PACKAGES = stages.REPOSITORY / "work" / "packages" / "gguf"
SMOLLM2 = stages.REPOSITORY / "results" / "models" / "smollm2-135m"
needs_converter = pytest.mark.skipif(not PACKAGES.is_dir(), reason="needs make work/packages/gguf")
EXACT = [("Llama", "f32"), ("Mistral", "bf16"), ("Qwen2", "bf16"), ("Gemma2", "bf16"), ("Phi3", "bf16")]
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is on Python's path, also on that of the programs started here."""
    monkeypatch.syspath_prepend(str(PACKAGES))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@cache
def sentencepiece_model() -> bytes:
    """A tokenizer.model of 300 pieces: `<unk>` 0, `<s>` 1, `</s>` 2, the 256 bytes, and some of the examples' texts."""
    written = io.BytesIO()
    import_module("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.texts()),
        model_writer=written,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def write_model(folder: Path, family: str, vocabulary: int, **changes: Any) -> None:
    """Configuration and random bfloat16 weights of a tiny model, as transformers saves them."""
    import torch
    import transformers

    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 2.0**-20,  # a file has it in float32
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    own = {"Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 256}}  # which transformers takes for granted
    settings = getattr(transformers, f"{family}Config")(**values | own.get(family, {}) | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(settings)
        for parameter in model.parameters():  # biases and norms of zeros or ones would hide an exchange
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder)


def merged(path: Path, family: str = "Llama", added: tuple[str, ...] = ()) -> Path:
    """A merged model with a sentencepiece tokenizer and a chat template, an artifact as `merge` leaves it.

    Tokens `added` to its vocabulary are in tokenizer.json only, as `models.<name>.new_tokens` leaves them.
    """
    with Artifact(path, stage="merge") as artifact:
        write_model(artifact.path, family, vocabulary=300 + len(added))
        (artifact.path / "tokenizer.model").write_bytes(sentencepiece_model())
        marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
        (artifact.path / "tokenizer_config.json").write_text(json.dumps(marks))
        tokens = [{"id": 300 + number, "content": token} for number, token in enumerate(added)]
        (artifact.path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
        (artifact.path / "chat_template.jinja").write_text(TEMPLATE)
        (artifact.path / "LICENSE").write_text("terms of the base\n")
        artifact.note(method="lora", base="original")
    return path


def export(model: Path, output: Path, outtype: str = "f16") -> Path:
    """The GGUF file of the artifact that the stage makes, in this process."""
    stages.call("export", "--model", model, "--name", "my-run", "--output", output, "--gguf.outtype", outtype)
    return output / "model.gguf"


def metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file."""
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(file).fields.items()}


def load(folder: Path, file: Path | None = None) -> Any:
    """The model in a folder, or in a GGUF file, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    if file is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    dense = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=dense, dtype=torch.float32
    ).eval()


@needs_converter
@pytest.mark.parametrize(("family", "outtype"), EXACT)
def test_a_model_computes_what_its_file_computes(family: str, outtype: str, tmp_path: Path) -> None:
    import torch

    model = merged(tmp_path / "merged", family)
    file = export(model, tmp_path / "gguf", outtype)
    before, after = load(model), load(model, file)
    found = after.state_dict()
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, found[name]), name
    ids = torch.randint(3, 300, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(before(ids).logits, after(ids).logits)


@needs_converter
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_weights_are_rounded_once_to_the_type(outtype: str, tmp_path: Path) -> None:
    import torch

    model = merged(tmp_path / "merged")
    file = export(model, tmp_path / "gguf", outtype)
    found = load(model, file).state_dict()
    for name, weight in load(model).state_dict().items():
        if outtype == "q8_0" and weight.dim() == 2:  # blocks of 32, steps of 1/127 of the largest, that in float16
            largest = weight.reshape(-1, 32).abs().amax(1, keepdim=True)
            bound = (largest * (0.5 + 127 * 2.0**-11) / 127).expand(-1, 32).reshape(weight.shape)
            assert (found[name] - weight).abs().le(bound * 1.0001).all() and not torch.equal(found[name], weight)
        else:
            kept = weight.half().float() if weight.dim() == 2 else weight
            assert torch.equal(found[name], kept), name


@needs_converter
def test_the_artifact(tmp_path: Path) -> None:
    model = merged(tmp_path / "merged")
    first = export(model, tmp_path / "first")
    moved = shutil.copytree(model, tmp_path / "elsewhere" / "other")
    assert export(moved, tmp_path / "second").read_bytes() == first.read_bytes()
    manifest = open_artifact(first.parent).content
    assert manifest["stage"] == "export" and manifest["settings"] == {"gguf": {"outtype": "f16"}}
    assert manifest["facts"]["converter"] == "llama_cpp_python 0.3.36"
    assert re.fullmatch("[0-9a-f]{64}", manifest["facts"]["converter_sha256"])
    assert set(manifest["files"]) == {"model.gguf", "LICENSE"}
    assert manifest["inputs"][0]["digest"] == read_manifest(model / "manifest.json").digest
    said = metadata(first)
    assert (said["general.architecture"], said["general.name"]) == ("llama", "my-run")
    assert (said["llama.context_length"], said["llama.block_count"], said["llama.vocab_size"]) == (256, 2, 300)
    assert said["tokenizer.chat_template"] == TEMPLATE
    assert (said["tokenizer.ggml.bos_token_id"], said["tokenizer.ggml.eos_token_id"]) == (1, 2)
    processor = import_module("sentencepiece").SentencePieceProcessor(model_proto=sentencepiece_model())
    assert said["tokenizer.ggml.tokens"] == [processor.IdToPiece(number) for number in range(300)]


@needs_converter
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs the demo's model")
def test_a_real_tokenizer_comes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    with Artifact(tmp_path / "merged", stage="merge") as artifact:
        write_model(artifact.path, "Llama", vocabulary=49_152, tie_word_embeddings=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(SMOLLM2 / name, artifact.path)
    file = export(tmp_path / "merged", tmp_path / "gguf", "q8_0")
    said, before = metadata(file), Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    assert said["tokenizer.ggml.pre"] == "smollm"
    assert said["tokenizer.ggml.tokens"] == [before.id_to_token(number) for number in range(49_152)]
    assert said["tokenizer.chat_template"] == (SMOLLM2 / "chat_template.jinja").read_text()
    after = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("<|im_start|>user\nHello there!<|im_end|>\n", "def build(n):\n    return [n] * 3\n", "Ωμέγα – 東京"):
        assert after(text)["input_ids"] == before.encode(text).ids


def refused(model: Path, output: Path) -> str:
    """The one line with which the program refuses a model; its log has no traceback, and nothing is left behind."""
    done = stages.run("export", "--model", model, "--name", "x", "--output", output, "--gguf.outtype", "f16")
    assert done.returncode == 2 and "Traceback" not in done.stderr and 'File "' not in done.stderr
    assert [path.name for path in output.parent.iterdir() if path.name.startswith((".", output.name))] == []
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(model) in errors[0]
    return errors[0]


@needs_converter
def test_what_the_converter_refuses_is_one_line(tmp_path: Path) -> None:
    unknown_tokenizer = tiny.model_folder(tmp_path / "model")
    assert "refuses it: NotImplementedError: BPE pre-tokenizer was not recognized" in refused(
        unknown_tokenizer, tmp_path / "gguf"
    )
    with Artifact(tmp_path / "unknown", stage="merge") as artifact:
        write_model(artifact.path, "Llama", vocabulary=300)
        path = artifact.path / "config.json"
        path.write_text(path.read_text().replace("LlamaForCausalLM", "RavenForCausalLM"))
    assert "refuses it: Model RavenForCausalLM is not supported" in refused(tmp_path / "unknown", tmp_path / "gguf")


@needs_converter
def test_a_token_that_would_be_lost_is_one_line(tmp_path: Path) -> None:
    model = merged(tmp_path / "merged", added=("<new>",))
    assert "the token '<new>' (300) is not in tokenizer.model" in refused(model, tmp_path / "gguf")


def test_what_lies_beside_the_weights_and_code_are_refused(tmp_path: Path) -> None:
    with Artifact(tmp_path / "beside", stage="merge") as artifact:
        (artifact.path / "config.json").write_text("{}")
        artifact.note(method="prompt_tuning")
    assert "what prompt_tuning trained lies beside the weights" in refused(tmp_path / "beside", tmp_path / "gguf")
    with Artifact(tmp_path / "code", stage="merge") as artifact:
        (artifact.path / "modeling.py").write_text("raise SystemExit\n")
    assert "modeling.py: a model with code of its own" in refused(tmp_path / "code", tmp_path / "gguf")


def test_without_the_converter_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with Artifact(tmp_path / "merged", stage="merge") as artifact:
        (artifact.path / "config.json").write_text("{}")
    arguments = ("--model", tmp_path / "merged", "--name", "x", "--output", tmp_path / "gguf")
    done = stages.run("export", *arguments, "--gguf.outtype", "f16")
    assert done.returncode == 2 and "error: llama.cpp's converter: not installed here" in done.stderr
    assert "--gguf.outtype: none given, allowed: f32" in stages.run("export", *arguments).stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@needs_converter
def test_a_full_disk_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(CoraxError, match=rf"^{small_disk}/gguf: the disk is full$"):
        export(merged(tmp_path / "merged"), small_disk / "gguf", "f32")
    assert list(small_disk.iterdir()) == []


@needs_converter
def test_a_killed_job_leaves_nothing_at_the_final_path(tmp_path: Path) -> None:
    model, output = merged(tmp_path / "merged"), tmp_path / "gguf"
    options = ("--model", model, "--name", "x", "--output", output, "--gguf.outtype", "f16")
    with subprocess.Popen(
        stages.command("export", *options), stderr=subprocess.PIPE, text=True, env=stages.environment()
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("converter: ") for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()


def values(**run: Any) -> dict[str, Any]:
    """A configuration with two runs, one of them with the settings `run`."""
    return {
        "models": {"m": {"source": "local", "path": "model"}},
        "datasets": {"d": {"generate": {}}},
        "runs": {
            "plain": {"model": "m", "dataset": "d", "plan": {"device": "cpu"}},
            "r": {"model": "m", "dataset": "d", "plan": {"device": "cpu"}, **run},
        },
    }


def test_the_configuration_is_checked_before_any_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(CoraxError, match=r"runs\.r\.gguf\.outtype: input should be 'f32', .*, found 'q4_k'"):
        config.check(values(gguf={"outtype": "q4_k"}))
    beside = {"tuning": {"method": "adaption_prompt"}, "gguf": {"outtype": "f16"}}
    with pytest.raises(CoraxError, match=r"runs\.r: gguf\.outtype is 'f16', allowed: null; .* 'adaption_prompt'"):
        config.check(values(**beside))


def test_its_image_is_wanted_by_its_users_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert config.check(values()).optional_images == []
    assert config.check(values(gguf={"outtype": "f16"})).optional_images == ["gguf"]
    assert names.wanted(["gguf"]) == ["data", "train", "gguf"]
    assert names.command(["harness", "gguf"]) == "make images HARNESS=1 GGUF=1"
    assert set(names.LOCKS["train"]) | set(converter.LOCKS) < set(names.LOCKS["gguf"])


def test_the_stage_is_there_only_for_runs_that_name_a_type(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values(gguf={"outtype": "q8_0"})))
    snakefile = ["--snakefile", str(stages.REPOSITORY / "Snakefile")]
    command = [sys.executable, "-m", "snakemake", *snakefile, "--dry-run", "-p"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=stages.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^ *rule export:$", done.stdout, re.MULTILINE)) == 1
    job = done.stdout[done.stdout.index("rule export:") :]
    assert "input: results/runs/r/merged/manifest.json" in job
    assert "--model results/runs/r/merged --name r --output results/runs/r/gguf --gguf.outtype=q8_0" in job
