"""The merge stage: an adapter made with peft on a tiny real model."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pyarrow.parquet as pq
import pytest
import stages
import tiny
import torch
from prepared import Prepared
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from corax.artifact import Artifact, open_artifact
from corax.errors import CoraxError
from corax.evaluation import Score, first_rows, sample_tensors, score_model, score_sample
from corax.merge.generation import write_generation
from corax.merge.quantisation import quantised_weights, seen_in_training
from corax.merge.scores import nearest
from corax.merge.weights import Factors, write_merged
from corax.model import load_adapter, load_plain, load_quantised
from corax.template import Kind, Template
from corax.tokens import TokenShards

CPU = torch.device("cpu")


def wide_model(path: Path, flavour: tiny.Flavour = "llama3", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model artifact whose weights lie in several files."""
    with Artifact(path, stage="download", settings={"model": {"license": "Apache-2.0"}}) as artifact:
        tiny.model(flavour).to(dtype).save_pretrained(artifact.path, max_shard_size="60KB")
        tiny.tokenizer_folder(artifact.path, flavour)
    return path


def adapter_folder(path: Path, model: Path, **options: Any) -> Path:
    """An adapter artifact with random A and B (peft starts with B = 0, which changes nothing)."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **options}
    base = load_plain(model, torch.float32, CPU)
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    with Artifact(path, stage="train", inputs=[model], settings={"lora": {"r": 4}}) as artifact:
        adapted.save_pretrained(str(artifact.path))
    return path


def run(model: Path, adapter: Path, tokens: Path, output: Path, *options: object) -> Path:
    inputs = ["--model", model, "--adapter", adapter, "--tokens", tokens, "--output", output]
    stages.call("merge", *inputs, "--merge.held_out_samples", 2, *options)
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def tokens(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The tokens of real quantum programs for a model."""

    def make(model: Path) -> Path:
        output = tmp_path_factory.mktemp("tokens") / "000"
        stages.call("pretokenize", "--text", prepared.text, "--model", model, "--output", output)
        return output

    return make


@pytest.fixture(scope="module")
def folder(tokens: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, adapter, tokens, and what is merged of them, onto each base, for a bfloat16 model in several files."""
    path = tmp_path_factory.mktemp("run")
    model = wide_model(path / "model")
    adapter = adapter_folder(path / "adapter", model)
    tokens(model).rename(path / "tokens")
    for base in ("best", "original", "nf4"):
        run(model, adapter, path / "tokens", path / base, "--merge.base", base)
    return path


@pytest.mark.parametrize("flavour", ["llama3", "chatml"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_float32_equals_peft(
    tmp_path: Path, tokens: Callable[[Path], Path], flavour: tiny.Flavour, use_rslora: bool
) -> None:
    model = wide_model(tmp_path / "model", flavour, torch.float32)
    adapter = adapter_folder(tmp_path / "adapter", model, use_rslora=use_rslora)
    found = weights(run(model, adapter, tokens(model), tmp_path / "merged", "--merge.base", "original"))
    expected = load_adapter(load_plain(model, torch.float32, CPU), adapter).merge_and_unload().state_dict()
    assert set(found) == set(expected) - ({"lm_head.weight"} if flavour == "chatml" else set())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def trained_base(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that QLoRA training multiplies with, taken out of the quantised model itself."""
    model = load_quantised(folder / "model", torch.float32, CPU)
    linear = {name: each for name, each in model.named_modules() if isinstance(each, bitsandbytes.nn.Linear4bit)}
    assert {f"{name}.weight" for name in linear} == set(quantised_weights(folder / "model"))
    dequantise = bitsandbytes.functional.dequantize_4bit
    return {f"{name}.weight": dequantise(each.weight.data, each.weight.quant_state) for name, each in linear.items()}


@pytest.mark.parametrize("base", ["original", "nf4"])
def test_bfloat16_is_the_sum_rounded_once(folder: Path, base: str) -> None:
    before, after = weights(folder / "model"), weights(folder / base)
    before |= trained_base(folder) if base == "nf4" else {}
    lora = load_file(folder / "adapter" / "adapter_model.safetensors")
    modules = {name.split(".lora_")[0] for name in lora}
    assert len(modules) == 14
    for module in modules:
        name = module.removeprefix("base_model.model.") + ".weight"
        a, b = (lora[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
        weight, found = before.pop(name).double(), after.pop(name)
        exact = weight + 3.0 * b @ a
        slack = 2.0**-22 * (weight.abs() + 3.0 * b.abs() @ a.abs())  # of a sum of five terms in float32
        error = (found.double() - exact).abs()
        for neighbour in (found.view(torch.int16) + 1, found.view(torch.int16) - 1):
            other = (neighbour.view(torch.bfloat16).double() - exact).abs()
            assert (error <= other + slack).all(), f"{name}: a neighbouring bfloat16 is nearer"
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("flavour", ["llama3", "chatml"])
def test_logits_are_those_of_the_adapter_on_its_base(
    tmp_path: Path, tokens: Callable[[Path], Path], flavour: tiny.Flavour
) -> None:
    model = wide_model(tmp_path / "model", flavour, dtype=torch.float32)
    adapter = adapter_folder(tmp_path / "adapter", model)
    ids = torch.arange(60).reshape(2, 30) + 7
    made = run(model, adapter, tokens(model), tmp_path / "merged")
    assert open_artifact(made).facts["base"] == "nf4"
    found = AutoModelForCausalLM.from_pretrained(made)
    expected = load_adapter(load_quantised(model, torch.float32, CPU), adapter)
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
        assert (found(ids).logits - load_plain(model, torch.float32, CPU)(ids).logits).abs().max() > 0.1


def test_scores_are_kept_and_choose(folder: Path) -> None:
    """Against full logits, position by position."""
    facts = open_artifact(folder / "best").facts
    scores = facts["scores"]
    trained = load_adapter(load_quantised(folder / "model", torch.float32, CPU), folder / "adapter")
    rows = pq.read_table(folder / "tokens" / "validation.parquet").to_pylist()[:2]
    for base in ("original", "nf4"):
        merged = load_plain(folder / base, torch.float32, CPU)
        losses, divergences = [], []
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                p, q = (torch.log_softmax(model(ids).logits[0].double(), -1) for model in (trained, merged))
            for place in range(row["prompt_length"], row["length"]):
                losses.append(-float(q[place - 1, row["input_ids"][place]]))
                divergences.append(float((p[place - 1].exp() * (p[place - 1] - q[place - 1])).sum()))
        count = len(losses)
        expected = {"loss": sum(losses) / count, "kl": sum(divergences) / count}
        assert scores[base] == pytest.approx(expected, rel=1e-3)
        assert open_artifact(folder / base).facts["scores"][base] == scores[base]
        assert (scores["samples"], scores["target_tokens"]) == (2, count)
    assert 0 < scores["nf4"]["kl"] < scores["original"]["kl"]
    assert facts["base"] == "nf4"
    same = {name: entry for name, entry in open_artifact(folder / "nf4").content["files"].items() if "READ" not in name}
    assert same.items() <= open_artifact(folder / "best").content["files"].items()
    assert nearest(scores, ["original"]) == "original"


def test_evaluation_of_merged_and_adapter_agree(folder: Path) -> None:
    shards = TokenShards([folder / "tokens"], "test")
    rows = first_rows(shards, 4)
    trained = load_adapter(load_quantised(folder / "model", torch.float32, CPU), folder / "adapter")
    of_adapter = Score.total([score_sample(trained, *sample_tensors(shards, *row, CPU)) for row in rows]).figures()
    of_merged = Score.total(score_model(folder / "best", shards, rows, torch.float32, CPU)).figures()
    assert of_merged["loss"] == pytest.approx(of_adapter["loss"], rel=2e-3)
    assert of_merged["token_accuracy"] == pytest.approx(of_adapter["token_accuracy"], abs=0.02)


def test_merged_folder_is_a_complete_model(folder: Path) -> None:
    base, made = folder / "model", folder / "best"
    assert {file.name for file in made.iterdir()} == {file.name for file in base.iterdir()} | {"README.md"}
    assert len(list(made.glob("*.safetensors"))) > 2
    assert AutoModelForCausalLM.from_pretrained(made).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(made)("e(+1,-2)").input_ids[1:] == tiny.tokenizer().encode("e(+1,-2)").ids[1:]
    card = (made / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert open_artifact(folder / "adapter").digest in card
    scores = open_artifact(made).facts["scores"]
    assert f"this model** | {scores['nf4']['loss']} | {scores['nf4']['kl']} |" in card


def test_same_bytes_again_with_other_threads(folder: Path, tmp_path: Path) -> None:
    inputs = [folder / name for name in ("model", "adapter", "tokens")]
    again = run(*inputs, tmp_path / "elsewhere", "--merge.threads", 1)
    for name in weights(again):
        assert torch.equal(weights(again)[name], weights(folder / "best")[name])
    digest = open_artifact(again).digest
    assert open_artifact(run(*inputs, tmp_path / "elsewhere", "--merge.threads", 1)).digest == digest


def test_killed_while_it_writes_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    inputs = [item for name in ("model", "adapter", "tokens") for item in (f"--{name}", folder / name)]
    process = subprocess.Popen(
        stages.command("merge", *inputs, "--output", tmp_path / "merged"),
        env=stages.environment(),
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(tmp_path.glob(".merged*/.original/*.safetensors")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "merged").exists()
    assert list(tmp_path.iterdir())
    run(*(folder / name for name in ("model", "adapter", "tokens")), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_matrix_with_more_rows_than_are_added_at_a_time(tmp_path: Path) -> None:
    """With a piece that is cut, and a tensor of another type that is only copied."""
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((5000, 700), (2, 700), (5000, 2)))
    other = torch.arange(17)
    (tmp_path / "made").mkdir()
    (tmp_path / "model").mkdir()
    save_file({"w": weight, "other": other}, tmp_path / "model" / "model.safetensors")
    save_file({"a": a, "b": b}, tmp_path / "lora.safetensors")
    factors = {"w": Factors("a", "b", 0.5)}
    write_merged(tmp_path / "model", tmp_path / "lora.safetensors", factors, {tmp_path / "made": {}}, 2)
    found = load_file(tmp_path / "made" / "model.safetensors")
    torch.testing.assert_close(found["w"], weight + 0.5 * b @ a)
    assert torch.equal(found["other"], other)


def resident(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@pytest.mark.parametrize("base", ["original", "nf4"])
def test_memory_does_not_grow_with_the_model(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MB in one file, one matrix of which has 128 MB."""
    (tmp_path / "made").mkdir()
    (tmp_path / "model").mkdir()
    weights = {name: torch.ones(2**13, 2**13, dtype=torch.bfloat16) for name in ("changed", "copied")}
    save_file(weights, tmp_path / "model" / "model.safetensors")
    lora = {"a": torch.ones(2, 2**13), "b": torch.ones(2**13, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    del weights, lora
    monkeypatch.setattr("corax.merge.quantisation.quantised_weights", lambda model: ["changed"])
    train = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    seen = seen_in_training(tmp_path / "model", train, torch.bfloat16) if base == "nf4" else {}
    factors = {"changed": Factors("a", "b", 1.0)}
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    write_merged(tmp_path / "model", tmp_path / "lora.safetensors", factors, {tmp_path / "made": seen}, 2)
    assert resident("VmHWM") - before < 100e6
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_slice("changed")[-3:], torch.full((3, 2**13), 3, dtype=torch.bfloat16))
        assert torch.equal(file.get_slice("copied")[-3:], torch.ones(3, 2**13, dtype=torch.bfloat16))


@pytest.mark.parametrize("flavour", tiny.KINDS)
def test_chat_template_is_that_of_training(flavour: tiny.Flavour, tmp_path: Path) -> None:
    folder = tiny.model_folder(tmp_path / "model", flavour)
    template = Template(folder, "", "", kind="messages")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "the base's own, with a system message"
    tokenizer.save_pretrained(folder)
    write_generation(folder, template.facts)
    conversation = [
        ("system", "e(0,1)"),
        ("user", "GHZ 'state'\n \"1\""),
        ("assistant", "e(+1,-2)"),
        ("user", "again\n"),
    ]
    for first in (0, 1):
        for last in (2, 4):
            messages = [{"role": role, "content": content} for role, content in conversation[first:last]]
            found = AutoTokenizer.from_pretrained(folder).apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert found == template.prompt_ids(json.dumps(messages))


@pytest.mark.parametrize(("kind", "end"), [("messages", "<|eot_id|>"), ("completion", "<|end_of_text|>")])
def test_generation_ends_where_samples_ended(kind: Kind, end: str, tmp_path: Path) -> None:
    folder = tiny.model_folder(tmp_path / "model", "llama3")
    ends = [tiny.tokenizer().token_to_id("<|end_of_text|>")]
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.update(eos_token_id=ends[0], temperature=0.6, do_sample=True)
    model.generation_config.save_pretrained(folder)
    write_generation(folder, Template(folder, "", "", kind=kind).facts)
    found = GenerationConfig.from_pretrained(folder)
    added = [tiny.tokenizer().token_to_id(end)] if kind == "messages" else []
    assert found.eos_token_id == ([*added, *ends] if added else ends[0])
    assert found.temperature == 0.6


def config(**values: Any) -> Callable[[Path], None]:
    """A change of adapter_config.json."""

    def change(folder: Path) -> None:
        file = folder / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change of adapter_model.safetensors."""

    def apply(folder: Path) -> None:
        file = folder / "adapter" / "adapter_model.safetensors"
        content = load_file(file)
        change(content)
        save_file(content, file)

    return apply


def quantised_base(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"load_in_4bit": True}}))


def truncated(folder: Path) -> None:
    file = folder / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def adapted_tied_head(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    head = {f"base_model.model.lm_head.lora_{factor}.weight": torch.ones(4, 4) for factor in "AB"}
    tensors(lambda content: content.update(head))(folder)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
FAILURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no lengths": (config(use_dora=True), "lora_magnitude_vector is missing"),
    "other variant": (config(use_qalora=True), "use_qalora is True, but only plain LoRA can be merged"),
    "other kind": (config(peft_type="LOHA"), "peft_type is 'LOHA', allowed: 'LORA'"),
    "bias": (config(bias="all"), "bias is 'all', allowed: 'none'"),
    "changed base": (config(init_lora_weights="pissa"), "init_lora_weights is 'pissa', which changes the base"),
    "alpha pattern": (config(alpha_pattern={"q_proj": 2}), "alpha_pattern is"),
    "rank": (config(r=8), "which do not fit r = 8"),
    "rank text": (config(r="four"), "r is 'four'"),
    "embedding": (tensors(lambda t: t.update({"base_model.model.embed.lora_embedding_A": torch.ones(1)})), "no LoRA"),
    "saved module": (tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(1)})), "no LoRA factor"),
    "half": (tensors(lambda t: t.pop(Q + "B.weight")), Q + "B.weight is missing"),
    "no such weight": (
        tensors(lambda t: t.update({Q.replace("0", "9") + x: t[Q + x].clone() for x in ("A.weight", "B.weight")})),
        "layers.9.self_attn.q_proj.lora_A.weight belongs to no weight",
    ),
    "shape": (tensors(lambda t: t.update({Q + "A.weight": torch.ones(4, 99)})), "have the shapes [4, 99] and [64, 4]"),
    "not a number": (tensors(lambda t: t[Q + "B.weight"].fill_(torch.nan)), "is not finite"),
    "empty": (tensors(lambda t: t.clear()), "no tensor in it"),
    "truncated": (truncated, "no valid safetensors file"),
    "missing": (lambda folder: (folder / "adapter" / "adapter_config.json").unlink(), "missing"),
    "no JSON": (lambda folder: (folder / "adapter" / "adapter_config.json").write_text("{"), "no valid JSON"),
    "quantised base": (quantised_base, "the weights are quantised"),
    "tied head": (adapted_tied_head, "changes the output head, which"),
}


def sealed_again(source: Path, target: Path, stage: str, inputs: list[Path]) -> None:
    """A copy of an artifact with a manifest of its own, so that only the content is wrong."""
    with Artifact(target, stage=stage, inputs=inputs) as artifact:
        shutil.copytree(source, artifact.path, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json"])


@pytest.mark.parametrize("case", FAILURES)
def test_one_clear_line(case: str, folder: Path, tmp_path: Path) -> None:
    change, message = FAILURES[case]
    damaged = tmp_path / "damaged"
    for name in ("model", "adapter"):
        shutil.copytree(folder / name, damaged / name)
    change(damaged)
    sealed_again(damaged / "model", tmp_path / "model", "download", [])
    sealed_again(damaged / "adapter", tmp_path / "adapter", "train", [tmp_path / "model"])
    with pytest.raises(CoraxError) as error:
        run(tmp_path / "model", tmp_path / "adapter", folder / "tokens", tmp_path / "merged")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_adapter_of_another_base_with_the_same_shapes(folder: Path, tmp_path: Path) -> None:
    other = tiny.model_folder(tmp_path / "other", seed=5)
    with pytest.raises(CoraxError, match=r"made from .*model .*, not from .*other"):
        run(other, folder / "adapter", folder / "tokens", tmp_path / "merged")


def test_tokens_of_another_tokenizer(folder: Path, tmp_path: Path, tokens: Callable[[Path], Path]) -> None:
    other = tokens(tiny.model_folder(tmp_path / "other", "plain"))
    with pytest.raises(CoraxError, match="not the tokenizer that"):
        run(folder / "model", folder / "adapter", other, tmp_path / "merged")


@pytest.mark.workflow
def test_the_job_asks_for_memory_by_the_size_of_the_model(tmp_path: Path) -> None:
    def asked() -> list[str]:
        files = ["-s", stages.REPOSITORY / "Snakefile", "--configfile", stages.REPOSITORY / "config.yaml"]
        target = ["--directory", tmp_path, "-n", "results/runs/demo/merged/manifest.json"]
        command = [sys.executable, "-m", "snakemake", *map(str, files + target)]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.findall(r"rule merge:\n(?:    .*\n)*?.*mem_mb=([^,]+)", output.stdout + output.stderr)

    assert asked() == ["<TBD>"]
    with Artifact(tmp_path / "results" / "models" / "smollm2-135m", stage="download") as artifact:
        (artifact.path / "model.safetensors").touch()
        os.truncate(artifact.path / "model.safetensors", 10**9)
    assert asked() == ["10000"]  # on a CPU: 6 GB, and four times the files


def test_a_linear_layer_that_is_not_stored_as_such_cannot_go_through_four_bits(tmp_path: Path) -> None:
    config = tiny.model().config
    config.save_pretrained(tmp_path)
    save_file({"model.embed_tokens.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CoraxError, match=r"q_proj.weight is not stored as such; merge.base: nf4 cannot serve"):
        quantised_weights(tmp_path)
