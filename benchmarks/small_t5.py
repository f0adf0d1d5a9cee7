"""A small T5 made here, where none can be had: a Unigram tokenizer, and weights trained by T5's own objective.

    small_t5.make(texts, Path("small-t5"), seconds=80)

Span corruption (arXiv 1910.10683, section 3.1.4): stretches of a text are replaced by sentinels, and the decoder writes
the sentinels, each with what it stands for. Here 30 % of a sentence's tokens in stretches of 3, as the texts are short.
"""

import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from corax import hardware, seq2seq

SENTINELS = [f"<extra_id_{number}>" for number in range(16)]
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
NOISE, SPAN = 0.3, 3
VOCABULARY = 8000
BATCH = 256
LEARNING_RATE = 1e-3
WARMUP = 0.05


def make(texts: Sequence[str], folder: Path, seconds: float, seed: int = 0) -> list[float]:
    """Write tokenizer and model into `folder`, trained for so long; the loss of every step, nats a target token."""
    random.seed(seed)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, additional_special_tokens=SENTINELS, **SPECIAL
    )
    fast.save_pretrained(folder)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_layers=4,
        num_heads=4,
        dropout_rate=0.0,  # as T5 1.1 was trained
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).to(hardware.device())
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    losses = train(model, [row for row in rows if len(row) >= 2 * SPAN], tokenizer.token_to_id(SENTINELS[0]), seconds)
    model.config.dropout_rate = 0.1
    model.save_pretrained(folder)
    return losses


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A Unigram tokenizer of T5's kind: pieces that begin with "▁" for a space, no begin token."""
    result = Tokenizer(models.Unigram())
    result.normalizer = normalizers.NFKC()
    result.pre_tokenizer = pre_tokenizers.Metaspace()
    result.decoder = decoders.Metaspace()
    names = list(SPECIAL.values())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=[*names, *SENTINELS], unk_token=names[2], show_progress=False
    )
    result.train_from_iterator(texts, trainer)
    result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return result


def corrupt(ids: Sequence[int], sentinel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the encoder reads, what the decoder writes) of a text, both with the end token; `sentinel` is the first."""
    spans = max(1, min(round(NOISE * len(ids) / SPAN), len(SENTINELS)))
    places = sorted(random.sample(range(len(ids) - SPAN * spans + spans), spans))
    source: list[int] = []
    target: list[int] = []
    end = 0
    for number, place in enumerate(places):
        start = place + number * (SPAN - 1)
        source += [*ids[end:start], sentinel + number]
        end = start + SPAN
        target += [sentinel + number, *ids[start:end]]
    return torch.tensor([*source, *ids[end:], 1]), torch.tensor([*target, 1])


def train(model: Any, rows: Sequence[Sequence[int]], sentinel: int, seconds: float) -> list[float]:
    """AdamW on batches of BATCH texts for so long, warm-up and cosine over that time; the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    dtype = hardware.compute_dtype(model.device)
    losses: list[torch.Tensor] = []
    began = time.monotonic()
    model.train()
    while (done := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        batch = [corrupt(row, sentinel) for row in random.choices(rows, k=BATCH)]
        sources, targets = zip(*batch, strict=True)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            logits = seq2seq.target_logits(model, sources, targets)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.cat(targets).to(model.device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) % 100 == 0:
            mean, passed = torch.stack(losses[-100:]).mean(), time.monotonic() - began
            print(f"span corruption: step {len(losses)}, loss {mean:.3f}, {passed:.0f} s", flush=True)
    return torch.stack(losses).tolist()
