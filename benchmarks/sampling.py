"""Samples an hour of an 8B model on one GPU: slots against one prompt at a time on an 8-bit base.

    python benchmarks/sampling.py              one GPU, about four minutes
    python benchmarks/sampling.py --tiny       a small model on the CPU: that everything runs, no figures

Llama-3-8B's shape with random weights, prompts of about 150 tokens, up to 400 new ones. A random model does not end by
itself, so an end is drawn with a fixed chance at every step, the same lengths for every contender. One-by-one is the
loop of the original: `generate` with batch size 1, temperature 0.6 and top-p 0.9 on a bitsandbytes 8-bit base (bfloat16
where bitsandbytes is missing); it decodes two samples, as far as it comes in 25 seconds each, and its samples an hour
are those of the same mean length. Every contender runs in a process of its own, with a time limit; the results so far
are written to benchmarks/results/sampling.json after each.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table import FOLDER, Row, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

SECONDS_EACH = 150
CONTENDERS = ("one-by-one", "slots-128", "slots-256", "orders")
MAX_NEW_TOKENS = 400
END_CHANCE = 1 / 300
SAMPLES_PER_SLOT = 4
ONE_BY_ONE_TOKENS = 120
"""New tokens of each of the two samples that are decoded one by one."""
ONE_BY_ONE_SECONDS = 25.0
"""Each of them is cut after so long."""
END = 1


def main() -> None:
    """All contenders in turn, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, on the CPU too")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the result")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, in which order")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args.contender, args.tiny)))
        return
    found: dict[str, dict[str, Any] | None] = {}
    for name in args.contenders.split(","):
        found[name] = _in_a_process(name, args.tiny)
        write("sampling", _rows(found), args.folder)
    if any(figures is None for figures in found.values()):
        sys.exit("error: a contender failed")


def measure(contender: str, tiny: bool) -> dict[str, Any]:
    """What one contender does: its tokens a second and samples an hour."""
    import torch

    from corax import hardware

    hardware.deterministic(0, 2)
    device = hardware.device()
    if contender == "one-by-one":
        return _one_by_one(device, tiny)
    model = _model(device, tiny)
    if contender == "orders":
        return _orders(model, tiny)
    count = int(contender.split("-")[1]) if not tiny else 4
    requests = _requests(count * SAMPLES_PER_SLOT, model.config.vocab_size, tiny)
    began = time.perf_counter()
    stream = _decode(model, count, requests, tiny)
    first = next(stream)
    ready = time.perf_counter()
    lengths = [len(first[1]), *(len(tokens) for _, tokens in stream)]
    seconds = time.perf_counter() - began
    return {
        "tokens_per_second": sum(lengths) / seconds,
        "samples_per_hour": len(lengths) / seconds * 3600,
        "mean_length": sum(lengths) / len(lengths),
        "first_sample_seconds": ready - began,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
    }


def _config(tiny: bool) -> Any:
    from transformers import LlamaConfig

    if tiny:
        return LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


def _model(device: Any, tiny: bool) -> Any:
    """Random weights, made on the device."""
    from transformers import AutoModelForCausalLM

    from corax import hardware

    with device:
        dtype = hardware.compute_dtype(device)
        return AutoModelForCausalLM.from_config(_config(tiny), dtype=dtype, attn_implementation="sdpa").eval()


def _requests(count: int, vocabulary: int, tiny: bool) -> list[Any]:
    """Prompts of 100 to 200 random tokens."""
    import numpy as np

    from corax.sample.prompts import Prompt
    from corax.sample.requests import Request

    random = np.random.default_rng(0)
    prompt = Prompt("target", "random", "", None)
    longest = 20 if tiny else 200
    rows = [random.integers(10, vocabulary, random.integers(longest // 2, longest)).tolist() for _ in range(count)]
    return [Request(number, prompt, ids, 0.6, 0.9) for number, ids in enumerate(rows)]


def _decode(model: Any, slots_count: int, requests: list[Any], tiny: bool) -> Iterator[tuple[Any, list[int]]]:
    import torch

    from corax.sample import slots
    from corax.sample.sampler import Sampler

    class Ending(Sampler):
        """Ends with a chance that depends on the sample's own stream only."""

        def next(self, logits: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            token = super().next(logits, count)
            uniform = self.streams.gather(1, count.clamp(max=self.max_new_tokens - 1)[:, None])[:, 0]
            # Digits of the number that hardly touch the choice of the token.
            ends = (uniform * 2**20).frac() < END_CHANCE
            return token.clamp(min=END + 1).masked_fill(ends, END)

    most = 20 if tiny else MAX_NEW_TOKENS
    sampler = Ending(slots_count, 0, most, model.device)
    length = max(len(request.ids) for request in requests) + most
    return slots.decode(model, sampler, END, slots_count, length, requests, lambda _: None)


def _orders(model: Any, tiny: bool) -> dict[str, Any]:
    """How many samples are the same, token by token, in another order and company, and with another number of slots."""
    count = 4 if tiny else 64
    requests = _requests(2 * count, model.config.vocab_size, tiny)
    first = {request.number: tokens for request, tokens in _decode(model, count, requests, tiny)}
    half = {request.number: tokens for request, tokens in _decode(model, count, requests[::2], tiny)}
    fewer = {request.number: tokens for request, tokens in _decode(model, count // 2, requests[::2], tiny)}
    return {
        "same_in_other_company": sum(first[number] == tokens for number, tokens in half.items()) / len(half),
        "same_in_fewer_slots": sum(first[number] == tokens for number, tokens in fewer.items()) / len(fewer),
    }


def _one_by_one(device: Any, tiny: bool) -> dict[str, Any]:
    """The original's loop; its samples an hour are of the mean length that the chance of an end gives the others."""
    import torch
    from transformers import GenerationConfig

    model = _model(device, tiny)
    bits = 16
    if device.type == "cuda":
        try:
            _quantise(model)
            bits = 8
        except ImportError as error:
            print(f"no 8-bit base: {error}", file=sys.stderr)
    (request,) = _requests(1, model.config.vocab_size, tiny)
    ids = torch.tensor([request.ids], device=device)
    most = 20 if tiny else ONE_BY_ONE_TOKENS

    def decode(tokens: int) -> int:
        options = GenerationConfig(
            do_sample=True,
            temperature=0.6,
            top_p=0.9,
            top_k=0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            max_time=ONE_BY_ONE_SECONDS,
            pad_token_id=0,
        )
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        return len(output[0].tolist()) - len(request.ids)

    with torch.inference_mode():
        decode(4)
        began = time.perf_counter()
        tokens = decode(most) + decode(most)
        seconds = time.perf_counter() - began
    longest = 20 if tiny else MAX_NEW_TOKENS
    length = sum((1 - END_CHANCE) ** step for step in range(longest))
    return {
        "tokens_per_second": tokens / seconds,
        "samples_per_hour": 3600 * tokens / seconds / length,
        "tokens": tokens,
        "bits": bits,
    }


def _quantise(model: Any) -> None:
    """The linear layers of the blocks in 8 bits, as load_in_8bit does; raises ImportError without bitsandbytes."""
    import bitsandbytes as bnb
    import torch

    options = {"bias": False, "has_fp16_weights": False, "threshold": 6.0}
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    linear = bnb.nn.Linear8bitLt(child.in_features, child.out_features, **options)
                    # It quantises on the way from the CPU to the GPU.
                    weight = child.weight.data.cpu()
                    linear.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                    setattr(parent, name, linear.to(child.weight.device))


def _in_a_process(contender: str, tiny: bool) -> dict[str, Any] | None:
    """The figures of a contender, None if it fails or takes too long."""
    command = [sys.executable, str(Path(__file__).resolve()), "--contender", contender, *(["--tiny"] if tiny else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS_EACH)
    except subprocess.TimeoutExpired:
        print(f"{contender}: more than {SECONDS_EACH} s", file=sys.stderr)
        return None
    print(f"{contender}: {time.monotonic() - began:.0f} s, {done.stdout.strip()}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _rows(found: dict[str, dict[str, Any] | None]) -> list[Row]:
    """The figures of the contenders so far; None for one that failed."""
    rows = []
    one, orders = found.get("one-by-one"), found.get("orders")
    if one:
        name = f"one by one, {one['bits']} bits"
        rows.append(Row(name, one["tokens_per_second"], "tokens/s", f"two samples, {one['tokens']} tokens in all"))
        rows.append(Row(name, one["samples_per_hour"], "samples/hour"))
    for contender, figures in found.items():
        if not figures or not contender.startswith("slots"):
            continue
        name = f"{contender.removeprefix('slots-')} slots"
        rows.append(Row(name, figures["tokens_per_second"], "tokens/s", at_least=5000))
        rows.append(Row(f"{name}, peak memory", figures["peak_gigabytes"], "GB"))
        if one:
            against = f"one by one, {one['bits']} bits, same run"
            times = figures["samples_per_hour"] / one["samples_per_hour"]
            rows.append(Row(f"{name}, samples an hour", times, "times", against, at_least=100))
    if orders:
        same = orders["same_in_other_company"]
        rows.append(Row("same tokens in other company and order", same, "share", "64 slots", at_least=1))
        rows.append(Row("same tokens with half the slots", orders["same_in_fewer_slots"], "share", "64 slots"))
    return rows


if __name__ == "__main__":
    main()
