"""What comes and goes during a step as plain transformers and peft compute it: what autograd keeps.

The worst moment is either the loss or the backward pass of one block.
"""

from collections.abc import Iterator
from math import ceil

from corax.plan.memory import FLOAT32, Component, Training, part, total
from corax.plan.states import exchange, gradients, trained_weights
from corax.settings.tuning import VIRTUAL_TOKENS

LOGIT_BYTES = 3 * FLOAT32
"""Bytes of a logit when its gradient is made: log-softmax, its gradient and the logit's, in float32."""
PADDING = 1.5
"""Most places for each token of padded rows: corax.train.rows."""
SCORE_BYTES = 8
"""Bytes of an attention score that plain operations keep: soft cap, softmax and weights."""


def moving(training: Training) -> list[Component]:
    """The components of the worst moment of a step, beside what is always there."""
    return max(_moments(training), key=total)


def _moments(training: Training) -> Iterator[list[Component]]:
    train, model, number = training.train, training.model, training.device.compute_bytes
    before = [gradients(training)] if training.packs_per_rank > 1 else []
    block, how = block_bytes(training)
    targets = training.targets
    logits = part(
        "logits and loss",
        targets * model.vocabulary * LOGIT_BYTES,
        f"{targets:,} targets × {model.vocabulary:,} × {LOGIT_BYTES} bytes",
    )
    narrow = copies(training)
    at_loss, at_block, at_end = _gathered(training) if training.sharded else [_workspace(training)] * 3
    if train.gradient_checkpointing:
        stream = FLOAT32 if training.tuning.method == "full" and not training.sharded else number
        tokens = places(training)
        size = model.blocks * tokens * model.hidden * stream
        sum_of = f"{model.blocks} blocks × {tokens:,} tokens × {model.hidden:,} × {stream} bytes"
        inputs = [part("activations: inputs of blocks", size, sum_of), *_never_freed(training)]
        again = part("activations: one block, recomputed", block, how)
        # The copies are gone after the forward pass, the logits when the first block is recomputed.
        yield [*before, *inputs, *narrow, *at_loss]
        yield [*before, *inputs, logits, *at_loss]
        yield [*before, *inputs, again, *at_block]
        yield [gradients(training), again, *at_block]
    else:
        every = part("activations: all blocks", model.blocks * block, f"{model.blocks} blocks × ({how})")
        yield [*before, every, logits, *narrow, *at_loss]
        yield [*before, every, *at_block]
    yield [gradients(training), *exchange(training), *at_end]


def _never_freed(training: Training) -> list[Component]:
    """Inputs of 8-bit layers, which bitsandbytes keeps for the backward pass where checkpointing cannot free them."""
    model, number = training.model, training.device.compute_bytes
    if training.train.bits != 8 or training.tuning.method == "full":
        return []
    tokens, width = places(training), 2 * model.hidden + model.attention + model.intermediate
    how = f"{model.blocks} blocks × {tokens:,} tokens × {width:,} × {number} bytes"
    return [part("activations: inputs of 8-bit layers", model.blocks * tokens * width * number, how)]


def block_bytes(training: Training) -> tuple[float, str]:
    """Bytes that one block keeps for the backward pass of a pack, and how they come about."""
    tokens, pairs, prefix = places(training), _pairs(training), _prefix_bytes(training)
    per_token, scores = bytes_per_token(training), _score_bytes(training)
    how = f"{tokens:,} tokens × {per_token:,.0f} bytes"
    if scores:
        how += f" + {pairs:,} pairs × {scores}"
    if prefix:
        how += f" + {prefix:,} of prefixes"
    return tokens * per_token + pairs * scores + prefix, how


def places(training: Training) -> int:
    """Positions that a pack is computed in: its tokens; with virtual tokens (corax.train.virtual) those of its rows.

    No row is padded to more than the longest sample.
    """
    if not _is_in_rows(training):
        return training.tokens
    padded = min(ceil(PADDING * training.tokens), training.samples * training.longest_sample)
    return padded + training.samples * (0 if _has_prefix(training) else training.tuning.num_virtual_tokens)


def _is_in_rows(training: Training) -> bool:
    return training.tuning.method in VIRTUAL_TOKENS and not training.model.config.get("is_encoder_decoder")


def _has_prefix(training: Training) -> bool:
    return training.tuning.method == "prefix_tuning"


def _pairs(training: Training) -> int:
    """Pairs of tokens that `_score_bytes` are needed for: all of a pack, or those of a row."""
    seen = training.tokens
    if _is_in_rows(training):
        seen = training.longest_sample + training.tuning.num_virtual_tokens
    return places(training) * seen


def _prefix_bytes(training: Training) -> int:
    """Keys and values that stand before those of every row."""
    if not (_is_in_rows(training) and _has_prefix(training)):
        return 0
    model = training.model
    width = model.attention if _repeats_keys(training) else model.keys
    return training.samples * training.tuning.num_virtual_tokens * 2 * width * training.device.compute_bytes


def bytes_per_token(training: Training) -> float:
    """Bytes a token that one block keeps for the backward pass.

    Query, key and value (on a CPU repeated for all heads) and output of attention; the inputs of the norms, in
    float32 for RMSNorm; of a gated MLP gate, its activation and up, of a plain one what its activation reads; and what
    the way to train keeps.
    """
    model, number = training.model, training.device.compute_bytes
    keys = model.attention if _repeats_keys(training) else model.keys
    attention = (2 * model.attention + 2 * keys) * number
    mlp = (3 if _is_gated(training) else 1) * model.intermediate * number
    return attention + _norm_bytes(training) + mlp + _method_bytes(training)


def _method_bytes(training: Training) -> float:
    """Bytes a token and block for the gradients of what is trained.

    LoRA: the inputs of the adapters, and their r middle values; with dropout each adapter has its own dropped copy and
    the dropout's mask. All weights: the input of every linear layer, and the norms' outputs. IA3: what it scales.
    """
    model, method, number = training.model, training.tuning.method, training.device.compute_bytes
    inputs_of_linears = (2 * model.hidden + model.intermediate) * number
    if method == "full":
        return inputs_of_linears + 2 * model.hidden * FLOAT32
    frozen = inputs_of_linears if training.train.bits == 8 else 0.0
    if method == "ia3":
        return frozen + 2 * model.keys * number + model.intermediate * number
    if method != "lora":
        return frozen
    targets = model.targets(training.lora.target_modules).values()
    inputs = sum(width for _, width in targets) / model.blocks
    if training.lora.lora_dropout > 0:
        mask = number if training.device.name == "cpu" else 1
        adapters = inputs * (number + mask)
    else:
        adapters = _distinct_inputs(training) * number
    return frozen + adapters + len(targets) / model.blocks * training.lora.r * number


def _distinct_inputs(training: Training) -> int:
    """Widths of the inputs that adapters keep without a copy; attention's output is kept anyway."""
    model = training.model
    names = {name.rpartition(".")[2] for name in model.targets(training.lora.target_modules)}
    first = names & {"q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "q", "k", "v"}
    second = names & {"gate_proj", "up_proj", "gate_up_proj", "c_fc", "wi", "wi_0", "wi_1"}
    last = names & {"down_proj", "c_proj", "wo"}
    return bool(first) * model.hidden + bool(second) * model.hidden + bool(last) * model.intermediate


def _norm_bytes(training: Training) -> float:
    """Norms of a block keep their inputs; Llama's and its like compute in float32."""
    model = training.model
    if model.family == "gpt_bigcode":
        dropped = 2 * model.hidden if model.config.get("resid_pdrop") else 0  # a byte of mask each
        return 2 * model.hidden * training.device.compute_bytes + dropped
    return (4 if model.family == "gemma2" else 2) * model.hidden * FLOAT32


def _score_bytes(training: Training) -> int:
    """Bytes for each pair of tokens: a mask, or the scores of every head where attention is plain operations."""
    model, number = training.model, training.device.compute_bytes
    if model.config.get("attn_logit_softcapping"):
        return model.heads * SCORE_BYTES
    return number if _has_mask(training) else 0


def _has_mask(training: Training) -> bool:
    """Whether attention gets a mask: not for rows without a prefix, nor on a GPU the documents' boundaries instead."""
    if training.model.config.get("attn_logit_softcapping"):
        return True
    return _has_prefix(training) if _is_in_rows(training) else training.device.name == "cpu"


def _repeats_keys(training: Training) -> bool:
    """Whether grouped keys and values are copied for each head of the query; one for all is read as it is."""
    return _has_mask(training) and training.model.family != "gpt_bigcode"


def _is_gated(training: Training) -> bool:
    config = training.model.config
    if training.model.family == "t5":
        return str(config.get("feed_forward_proj", "relu")).startswith("gated")
    return training.model.family != "gpt_bigcode"


def copies(training: Training) -> list[Component]:
    """Weights that are trained in float32, in the type of the products (torch.autocast keeps them for backward)."""
    model, method, number = training.model, training.tuning.method, training.device.compute_bytes
    if number == FLOAT32 or training.sharded:
        return []
    if method == "full":
        count = model.linear_parameters + model.vocabulary * model.hidden
        return [part("all weights: in 16 bits", count * number, f"{count:,} of blocks and head × {number} bytes")]
    if method == "lora":
        count = trained_weights(training)
        return [part("adapter: in 16 bits", count * number, f"{count:,} weights × {number} bytes")]
    return []


def _workspace(training: Training) -> list[Component]:
    """What exists for one layer at a time: its weights in the compute type."""
    model, number = training.model, training.device.compute_bytes
    if training.tuning.method == "full" or training.train.bits == 16:
        return []
    largest = max(out * width for out, width in model.linears.values())
    return [part("one linear layer, dequantised", largest * number, f"{largest:,} weights × {number} bytes")]


def _gathered(training: Training) -> Iterator[list[Component]]:
    """Divided weights as they come together: at the loss, at a block's backward pass, and when all blocks are through.

    Embedding and head are gathered as one, from the forward pass to the end of the backward pass. Of the blocks there
    are two, the one at hand and the one ahead. Gradients are summed in float32, those of the head at the very end.
    """
    model, number = training.model, training.device.compute_bytes
    outside, head = model.embeddings + model.head, model.vocabulary * model.hidden
    block = model.linear_parameters // model.blocks
    whole = part("gathered: embedding and head", outside * number, f"{outside:,} × {number} bytes")
    gradient = part("gathered: gradient of the head", head * number, f"{head:,} × {number} bytes")
    blocks = part(
        "gathered: two blocks, gradient of one",
        block * (3 * number + FLOAT32),
        f"{block:,} × (2 × {number}, {number} and {FLOAT32} bytes)",
    )
    sums = outside * (number + FLOAT32 + FLOAT32 / training.ranks)
    how = f"{outside:,} × ({number} + 4 bytes, and 4 / {training.ranks})"
    yield [whole, gradient]
    yield [whole, gradient, blocks]
    yield [whole, part("gathered: gradients of embedding and head", sums, how)]
