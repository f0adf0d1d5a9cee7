"""What only a GPU can show: compiled kernels, attention with document boundaries, 8 bits, repeatable training."""

import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import bitsandbytes as bnb
import engine_models
import numpy as np
import pytest
import stages
import torch
from prepared import PLAN_OPTIONS, Prepared

from corax.artifact import read_manifest
from corax.model import load_quantised
from corax.settings.lora import LoraSettings
from corax.train.adapter import add_adapter
from corax.train.engine import Engine
from corax.train.fast.engine import FastEngine, place_embedding
from corax.train.fast.quantised import QuantisedWeight
from corax.train.general import GeneralEngine
from corax.train.isolation import check_isolation
from corax.train.packs import Batch, flatten

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GPU = torch.device("cuda")
SIZES = {"hidden_size": 256, "intermediate_size": 512}
FAMILIES = ("llama", "mistral", "qwen2", "phi3")
LAYERS = engine_models.SIZES["num_hidden_layers"]
LENGTHS = ((190, 41), (1, 0), (402, 300), (2, 1), (77, 5))
FEW_STEPS = ("--train.eval_steps", 4, "--train.save_steps", 2, "--train.learning_rate", 0.01)


@cache
def model(family: str, dropout: float = 0.0) -> Any:
    """A random 4-bit model computing in bfloat16 on the GPU, with an adapter."""
    folder, lora = Path(mkdtemp(prefix=family)), LoraSettings(r=8, lora_dropout=dropout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_models, "SIZES", {**engine_models.SIZES, **SIZES})
        engine_models.quantised(folder, family, lora)
    result = add_adapter(load_quantised(folder, torch.bfloat16, GPU), lora, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return result


def pack(scale: int = 1) -> Batch:
    """Documents of very different lengths, one of a single token."""
    random = np.random.default_rng(scale)
    rows = [(random.integers(1, 300, length * scale).astype(np.uint32), prompt) for length, prompt in LENGTHS]
    return flatten([(ids, np.arange(prompt, len(ids))) for ids, prompt in rows])


def loss_and_gradient(engine: Engine, batch: Batch, seed: int | None = None) -> tuple[float, torch.Tensor]:
    engine.model.zero_grad()
    loss = engine.loss_sum(batch, seed)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat([each.reshape(-1) for each in engine_models.gradients(engine.model).values()])


def fast_engine(net: Any, kept: int, resident: bool) -> FastEngine:
    place_embedding(net, kept)
    assert net.get_base_model().model.embed_tokens.weight.is_cuda == (kept == LAYERS)
    return FastEngine(net, kept, resident)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [0, LAYERS])
def test_compiled_layers_agree_with_transformers_and_peft(family: str, kept: int) -> None:
    for scale in (1, 3):
        loss, gradient = loss_and_gradient(fast_engine(model(family), kept, False), pack(scale))
        place_embedding(model(family), LAYERS)
        wanted_loss, wanted = loss_and_gradient(GeneralEngine(model(family)), pack(scale))
        assert loss == pytest.approx(wanted_loss, rel=2e-3)
        assert torch.nn.functional.cosine_similarity(gradient, wanted, dim=0) > 0.995


def test_memory_choices_do_not_change_a_bit() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        ways = ((LAYERS, True), (LAYERS, False), (1, False), (0, True))
        found = [loss_and_gradient(fast_engine(model("llama", 0.1), *way), pack(), seed=5) for way in ways]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(loss == found[0][0] and torch.equal(gradient, found[0][1]) for loss, gradient in found[1:])


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (192, 320), (1024, 4096)])
def test_dequantised_values_are_those_of_bitsandbytes(shape: tuple[int, int], double_quant: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.bfloat16, device=GPU)
    packed, state = bnb.functional.quantize_4bit(values, compress_statistics=double_quant, quant_type="nf4")
    room = torch.zeros(shape[0], shape[1] + 8, dtype=torch.bfloat16, device=GPU)
    quantised = QuantisedWeight(bnb.nn.Params4bit(packed, quant_state=state, requires_grad=False))
    quantised.write(room[:, : shape[1]])
    assert torch.equal(room[:, : shape[1]], bnb.functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", ["fast", "general"])
def test_documents_of_a_pack_do_not_see_each_other(kind: str) -> None:
    engine = FastEngine(model("llama"), LAYERS, False) if kind == "fast" else GeneralEngine(model("llama"))
    check_isolation(engine, pack())


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ((), "fast layers"),
        (("--train.optim", "adamw_8bit"), "fast layers"),
        (("--train.optim", "paged_adamw_8bit"), "fast layers"),
        (("--lora.use_dora", "true"), "plain transformers and peft"),
        (("--train.bits", 16), "plain transformers and peft"),
        (("--tuning.method", "full"), "plain transformers and peft"),
    ],
)
def test_a_killed_training_ends_with_the_same_bytes(
    prepared: Prepared, tmp_path: Path, options: tuple[object, ...], engine: str
) -> None:
    """Deterministic mode on a GPU: kill -9 after the first checkpoint, then the same command again."""
    stages.call("plan", *plan_options(prepared, options), "--output", tmp_path / "plan")
    inputs = ("--model", prepared.model, "--plan", tmp_path / "plan", "--tokens", prepared.tokens)

    def arguments(name: str) -> list[object]:
        places = ("--work", tmp_path / name / "work", "--output", tmp_path / name / "adapter")
        return [*inputs, *places, *FEW_STEPS, "--lora.r", 4, *options]

    whole = stages.run("train", *arguments("whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(stages.command("train", *arguments("killed")), cwd=tmp_path, env=stages.environment())
    while killed.poll() is None and not list(tmp_path.glob("killed/work/*/step-*")):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = stages.run("train", *arguments("killed"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert killed.returncode == 0 or "going on after step" in again.stderr
    digests = [read_manifest(tmp_path / name / "adapter" / "manifest.json").digest for name in ("whole", "killed")]
    assert digests[0] == digests[1]
    assert engine in whole.stderr


def plan_options(prepared: Prepared, options: tuple[object, ...]) -> list[object]:
    """A plan of twelve short steps on one H100 with these settings of the run."""
    inputs = ("--model", prepared.model, "--tokens", prepared.tokens, "--plan.device", "h100-80gb")
    return [*inputs, *PLAN_OPTIONS, "--lora.r", 4, *options]
