"""What comes and goes during a step with the fast layers (corax/train/fast), counted tensor by tensor.

T is the number of tokens of a pack, H the width, q and k those of query and key, I the MLP's, r the rank; all in the
compute type of b bytes. The worst moment is either the loss or the backward pass of one of the layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from corax.plan.memory import FLOAT32, Component, Training, part, total
from corax.plan.states import exchange, gradients
from corax.train.fast.limits import FAMILIES, LOSS_ROWS

MATRIX_WORKSPACE = 32 * 2**20
"""Bytes that cuBLAS keeps for its own use (32 MiB on Hopper)."""


def unsupported(training: Training) -> str | None:
    """Why the fast layers cannot compute this training, None if they can.

    The same rules as in corax.train.fast.engine, from the configuration alone.
    """
    model, lora, config = training.model, training.lora, training.model.config
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if training.device.name == "cpu":
        return "no GPU"
    if model.family not in FAMILIES:
        return f"no fast layers for the architecture {model.family}"
    if config.get("hidden_act", "silu") != "silu" or config.get("partial_rotary_factor") not in (None, 1.0):
        return "another activation, or rotary positions on part of a head"
    if window is not None and window < training.longest_sample:
        return f"a sliding window of {window} tokens, documents of up to {training.longest_sample}"
    if config.get("resid_pdrop", 0.0) or config.get("attention_dropout", 0.0):
        return "dropout inside the base model"
    if training.tuning.method != "lora" or lora.use_dora or lora.modules_to_save or training.new_tokens:
        return "another kind of adapter than LoRA"
    if training.train.bits != 4:
        return f"a base in {training.train.bits} bits"
    if len(model.targets(lora.target_modules)) < len(model.linears):
        return "a linear layer without adapter"
    if len(model.linears) not in (4 * model.blocks, 7 * model.blocks):
        return "layers with other linear layers than query, key, value, output, gate, up and down"
    if config.get("attention_bias") or any(width % 64 for _, width in model.linears.values()):
        return "a bias, or a width that is no multiple of 64"
    return None


def layers_kept(training: Training) -> int:
    """Layers whose activations are kept."""
    kept = training.train.layers_kept
    if kept is None:
        return 0 if training.train.gradient_checkpointing else training.model.blocks
    return min(kept, training.model.blocks)


def embedding_on_host(training: Training) -> bool:
    """Whether the embedding needs no memory of the device: as in corax.train.fast.engine."""
    return layers_kept(training) < training.model.blocks and training.model.head > 0


@dataclass(frozen=True)
class Sizes:
    """Bytes of a layer's tensors for one pack."""

    stream: int
    """One tensor of T × H: a layer's input, its output, their gradients."""
    kept: int
    """What a layer keeps beside its input: rotated query, key and value, attention's output and its normaliser, the
    MLP's input, gate and up with room for d(low), and the adapters' low-rank values."""
    kept_last: int
    """The same of the last layer, where all after attention is for the positions in the loss."""
    work: int
    """The most that the backward pass of a layer needs beside that."""
    work_last: int
    """The same of the last layer."""
    gradient: float
    """Of the adapters of one layer."""

    @classmethod
    def of(cls, training: Training) -> "Sizes":
        """The sizes for this training."""
        model, number = training.model, training.device.compute_bytes
        tokens, r = training.tokens, training.lora.r
        adapters = len(model.linears) // model.blocks
        qkv, _, gate_up, down = projections(training)
        stream = tokens * model.hidden * number
        attention = (2 * model.attention + 2 * model.keys + qkv.rank) * number + model.heads * FLOAT32
        mlp_widths = model.hidden + 2 * model.intermediate + gate_up.rank
        after = (mlp_widths + adapters * r - qkv.rank) * number
        of_gate_up, of_down = (0 if dequantised(training) else each.matrix * number for each in (gate_up, down))

        def work(rows: int) -> int:
            one, inner = (rows * width * number for width in (model.hidden, model.intermediate))
            wide = one + rows * r * number
            return max(
                one + wide + inner + of_down,  # the output's gradient, also with room for d(low), and that of swiglu's
                2 * one + of_gate_up,  # then, in gate's and up's place their gradients, and that of their input
                3 * one + wide,  # then the gradient of the MLP's input with room for d(low), the norm's output
            )

        kept, last = (tokens * attention + rows * after for rows in (tokens, training.targets))
        return cls(stream, kept, last, work(tokens), work(training.targets), gradients(training).bytes / model.blocks)


@dataclass(frozen=True)
class Projection:
    """Linear layers that read the same input, as one matrix [W B ; A ·] (corax.train.fast.lora): `rank` is of all."""

    rows: int
    columns: int
    rank: int

    @property
    def matrix(self) -> int:
        """Elements of the matrix."""
        return (self.rows + self.rank) * (self.columns + self.rank)


def projections(training: Training) -> tuple[Projection, Projection, Projection, Projection]:
    """Query, key and value; output; gate and up; down: of one layer."""
    model, r = training.model, training.lora.r
    of_qkv, of_gate_up = {4: (1, 1), 7: (3, 2)}[len(model.linears) // model.blocks]
    return (
        Projection(model.attention + 2 * model.keys, model.hidden, of_qkv * r),
        Projection(model.hidden, model.attention, r),
        Projection(2 * model.intermediate, model.hidden, of_gate_up * r),
        Projection(model.hidden, model.intermediate, r),
    )


def dequantised(training: Training) -> bool:
    """Whether the values of the 4-bit base stay in memory."""
    return bool(training.train.dequantised_base)


def moving(training: Training) -> list[Component]:
    """The components of the worst moment of a step, beside what is always there."""
    return max(_moments(training), key=total)


def _moments(training: Training) -> Iterator[list[Component]]:
    blocks, kept, sizes = training.model.blocks, layers_kept(training), Sizes.of(training)
    before = gradients(training) if training.packs_per_rank > 1 else None
    always = [*_dequantised_base(training), part("matrix products: workspace", MATRIX_WORKSPACE, "cuBLAS's own")]
    yield [*always, *([before] if before else []), *_activations(training, blocks, kept), _loss(training)]
    for done in range(blocks):
        left = blocks - done
        whole = max(0, kept - done)
        values, needed = (sizes.kept, sizes.work) if done else (sizes.kept_last, sizes.work_last)
        again = [] if whole else [part("activations: one layer, recomputed", values, _how_kept(training))]
        made = before or part(gradients(training).component, sizes.gradient * done, f"of {done} layers")
        work = part("backward pass of one layer", needed, "gradients, and values made again")
        yield [*always, made, *_activations(training, left, whole), *again, work]
    yield [*always, gradients(training), *exchange(training)]


def _dequantised_base(training: Training) -> list[Component]:
    if not dequantised(training):
        return []
    model, number = training.model, training.device.compute_bytes
    weights, matrices = model.linear_parameters, model.blocks * sum(each.matrix for each in projections(training))
    how = f"({weights:,} + {matrices - weights:,} of A and B) × {number} bytes"
    return [part("base: its values in 16 bits", matrices * number, how)]


def _activations(training: Training, layers: int, whole: int) -> list[Component]:
    sizes = Sizes.of(training)
    how = f"{layers} layers × {training.tokens:,} tokens × {training.model.hidden:,} × {training.device.compute_bytes}"
    inputs = part("activations: inputs of layers", layers * sizes.stream, f"{how} bytes")
    if not whole:
        return [inputs]
    kept, how = whole * sizes.kept, f"{whole} layers × ({_how_kept(training)})"
    if layers == training.model.blocks:
        kept += sizes.kept_last - sizes.kept
        how += f", of the last for {training.targets:,} tokens after attention"
    return [inputs, part("activations: kept layers", kept, how)]


def _how_kept(training: Training) -> str:
    per_token = Sizes.of(training).kept // training.tokens
    return f"{training.tokens:,} tokens × {per_token:,} bytes"


def _loss(training: Training) -> Component:
    """The last layer's output and its gradient, for rows in the loss; of a part of them logits and their gradient."""
    model, number = training.model, training.device.compute_bytes
    rows = min(LOSS_ROWS, training.targets)
    output, logits = (2 * number * count for count in (training.targets * model.hidden, rows * model.vocabulary))
    return part(
        "logits and loss", output + logits, f"2 × {rows:,} × {model.vocabulary:,} × {number} bytes + {output:,}"
    )
