"""Measure training steps of many settings on one GPU: the allocator's peak and the step time, for benchmarks/plan.py.

Random weights of Llama-3-8B's and Llama-3.2-3B's widths with few layers, since memory and time a layer do not depend
on their number; packs of simulated quantum experiments (quantum_lengths.json). Each setting goes through the same code
as the train stage. On a CPU with tiny sizes it shows that the program works; there is no allocator to read then.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARMUP, STEPS = 3, 5


@dataclass(frozen=True)
class Setting:
    """One way to train; `kept` None: plain transformers and peft, with or without `checkpointing`."""

    widths: str
    layers: int
    r: int
    pack: int
    kept: int | None = None
    dequantised: bool = False
    dropout: float = 0.0
    bits: int = 4
    checkpointing: bool = False
    packs: int = 1
    """Packs in one optimizer step."""

    @property
    def name(self) -> str:
        """In words."""
        how = "general, checkpointed" if self.checkpointing else "general"
        if self.kept is not None:
            how = f"{self.kept} kept" + (", dequantised" if self.dequantised else "")
        more = (f", dropout {self.dropout:g}" if self.dropout else "") + (
            f", {self.bits} bits" if self.bits < 16 else ""
        )
        return f"{self.widths} × {self.layers}, r {self.r}, pack {self.pack:,}, {how}{more}, {self.packs} a step"


WIDTHS: dict[str, dict[str, int]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
}
VOCABULARY = {"8B": 128_256, "3B": 128_256, "tiny": 300}
SETTINGS = (
    Setting("8B", 4, 64, 8192, kept=4, dequantised=True),
    Setting("8B", 4, 64, 8192, kept=4),
    Setting("8B", 4, 64, 8192, kept=2),
    Setting("8B", 4, 64, 8192, kept=0),
    Setting("8B", 4, 64, 4096, kept=4),
    Setting("8B", 4, 64, 16_384, kept=1),
    Setting("8B", 4, 64, 8192, kept=4, packs=3),
    Setting("8B", 4, 64, 8192),
    Setting("8B", 4, 64, 8192, checkpointing=True),
    Setting("8B", 4, 16, 8192, kept=2, dropout=0.05),
    Setting("8B", 4, 16, 8192, checkpointing=True, dropout=0.05),
    Setting("3B", 6, 32, 8192, kept=6, dequantised=True),
    Setting("3B", 6, 32, 16_384, kept=3),
    Setting("3B", 6, 32, 8192, kept=0),
    Setting("3B", 6, 32, 8192, checkpointing=True, bits=8),
    Setting("3B", 6, 32, 8192, checkpointing=True, bits=16),
    Setting("3B", 6, 32, 4096, bits=16),
)
TINY = (
    Setting("tiny", 2, 4, 256, kept=2, dequantised=True),
    Setting("tiny", 2, 4, 256, kept=0, packs=2),
    Setting("tiny", 2, 4, 256, checkpointing=True, bits=16),
)


def measure(settings: tuple[Setting, ...], path: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure each setting until the time is used up; `path` (JSON) is written after every one."""
    import torch

    from corax import hardware

    device = hardware.device()
    found: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        loaded: tuple[Any, ...] = ()
        model = None
        for setting in settings:
            if time.monotonic() > end:
                print(f"{setting.name}: left out, no time", flush=True)
                continue
            wanted = (setting.widths, setting.layers, setting.r, setting.dropout, setting.bits)
            if wanted != loaded:
                model = None
                _free(torch)
                model, loaded = _load(Path(folder), setting, device), wanted
            try:
                row = _steps(model, setting, device)
            except torch.OutOfMemoryError as error:
                row = {"failed": str(error).splitlines()[0]}
                _free(torch)
            name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
            found.append({"name": setting.name, "device": name, **asdict(setting), **row})
            print(json.dumps(found[-1]), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def config(setting: Setting) -> dict[str, Any]:
    """config.json of the setting's model."""
    sizes = {**WIDTHS[setting.widths], "num_hidden_layers": setting.layers, "vocab_size": VOCABULARY[setting.widths]}
    return {"model_type": "llama", "max_position_embeddings": 32_768, "tie_word_embeddings": False, **sizes}


def _load(root: Path, setting: Setting, device: Any) -> Any:
    """The model as the train stage loads it, from a folder of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from corax import hardware
    from corax.model import load_base
    from corax.settings.lora import LoraSettings
    from corax.settings.train import TrainSettings
    from corax.train.adapter import add_adapter

    folder, dtype = root / f"{setting.widths}-{setting.layers}", hardware.compute_dtype(device)
    if not folder.exists():
        torch.manual_seed(0)
        with torch.device(device):
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(setting)), dtype=dtype).save_pretrained(
                folder
            )
    train = TrainSettings(bits=setting.bits, llm_int8_threshold=0)  # type: ignore[arg-type]
    base = load_base(folder, "lora", train.model_dump(), dtype, device)
    return add_adapter(base, LoraSettings(r=setting.r, lora_dropout=setting.dropout), seed=0)


def packs(setting: Setting) -> Iterator[Any]:
    """Four packs of samples of the recorded lengths."""
    import training_model

    sizes = {**WIDTHS[setting.widths], "vocab_size": VOCABULARY[setting.widths]}
    shape = training_model.Shape(sizes, setting.pack, 1 if setting.widths != "tiny" else 16, setting.r)
    return training_model.packs(shape, 4)


def _steps(model: Any, setting: Setting, device: Any) -> dict[str, Any]:
    import torch

    from corax.settings.train import TrainSettings
    from corax.train.fast.engine import FastEngine, place_embedding
    from corax.train.general import GeneralEngine
    from corax.train.optimization import make_optimizer, trained

    engine: Any
    place_embedding(model, setting.layers if setting.kept is None else setting.kept)
    if setting.kept is None:
        base = model.get_base_model()
        if setting.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        engine = GeneralEngine(model)
    else:
        engine = FastEngine(model, setting.kept, setting.dequantised)
    parameters = trained(model)
    optimizer = make_optimizer(parameters, TrainSettings())
    batches, gpu = list(packs(setting)), device.type == "cuda"
    if gpu:
        _free(torch)
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range((WARMUP + STEPS) if gpu else 2):
        start = time.perf_counter()
        for number in range(setting.packs):
            batch = batches[(step + number) % len(batches)]
            (engine.loss_sum(batch, step) / len(batch.targets)).backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if gpu else None,
        "seconds": statistics.median(seconds[WARMUP:] if gpu else seconds),
        "tokens": max(batch.input_ids.numel() for batch in batches),
        "targets": max(len(batch.targets) for batch in batches),
        "mean_targets": sum(len(batch.targets) for batch in batches) / len(batches),
        "document": sum(b.input_ids.numel() for b in batches) / sum(int((b.position_ids == 0).sum()) for b in batches),
    }


def _free(torch: Any) -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
