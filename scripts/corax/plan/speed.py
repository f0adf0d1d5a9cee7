"""How long training takes, and what to ask Slurm for: counted operations and bytes over measured speeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from corax.plan import fast, general
from corax.plan.devices import GB
from corax.plan.memory import FLOAT32, Training
from corax.plan.schedule import Part
from corax.plan.states import paged_bytes, trained_weights, weight_bits
from corax.progress import clock

MEMORY_SHARE = 0.60
"""Of a GPU's bandwidth: what elementwise kernels and dequantisation reach (training.json)."""
BUSY = 0.979
"""Share of a step in which the GPU works (440 of 450 ms, training.json)."""
HOST_SECONDS, HOST_SECONDS_DEQUANTISED = 0.0135, 0.009
"""Seconds in which the host issues forward and backward pass of one fast layer, whatever its width, and with the
dequantised base kept (short packs and small widths of plan-measured.json); a fifth more to compute it again."""
ADAPTER_BYTES = (2, 12)
"""Bytes for each input and output of a linear layer that peft's adapter moves forward: the input read, the output made,
scaled, and summed with the layer's."""
EIGHT_BIT_BYTES = (3, 10)
"""The same of an 8-bit layer's rounding: the input read and written, the sums made and scaled."""
BLOCK_BYTES = (84, 20, 10)
"""Bytes that transformers' kernels, one for each operation, move forward for each number of the hidden state (two norms
in float32, two sums), of queries and keys (rotation) and of the MLP's inner width."""
LOSS_BYTES = 32
"""The same for each logit: cast to float32, log-softmax and its gradient."""
GENERAL_SHARE, GENERAL_PASS_SECONDS = 0.88, 0.00113
"""Of a GPU's bandwidth, for these bytes; and seconds of a block's kernels in a pass, whatever their size (fitted to
plan-measured.json and to the usual script's time)."""
GENERAL_HOST_SECONDS = (0.0013, 0.0002)
"""Seconds in which the host issues a block's kernels in a pass, and those of each layer that LoRA adapts (SmolLM2-135M
on an H100, forward and backward: 115 ms for all weights, 240 for LoRA on seven layers of a block)."""
LINK_SHARE = 0.75
"""Of the speed between GPUs: what NCCL's exchanges of large tensors reach; rounded, not measured here."""
OPTIMIZER_BYTES = 28
"""AdamW in float32 reads each trained number, its gradient and moments, and writes all but the gradient."""
CPUS_PER_GPU = 18
"""Fair share of a GPU on nodes with 4 GPUs and 72 cores."""
LONGEST_JOB_HOURS = 24
"""Usual limit of a job; longer training is resumed by the next job."""
TIME_MARGIN = 1.5
"""The estimate of speed is rough, and a job that ends early costs nothing."""
STARTUP_HOURS = 0.25
"""Loading and quantising the model, and the last checkpoint."""

LIBRARIES = 12 * GB
"""Main memory of a rank on a GPU for CUDA, PyTorch and the processes that compile kernels."""


@dataclass(frozen=True)
class Slurm:
    """What one job asks for."""

    nodes: int
    gpus: int
    cpus: int
    mem_gb: int
    time: str


def seconds_per_pack(training: Training, tokens: float, targets: float, document: float, learn: bool = True) -> float:
    """Seconds of one pack on one device, forward and, to learn, backward.

    `tokens`, of which `targets` carry loss, in documents of `document` tokens on average.
    """
    if fast.unsupported(training) is None:
        return max(_fast_seconds(training, tokens, targets, document, learn), _host_seconds(training, learn))
    return general_seconds(training, tokens, targets, document, learn)


def host_factor(training: Training, part: Part) -> float | None:
    """How many times as long the host issues a mean pack's kernels as the GPU computes it; None: not known."""
    if fast.unsupported(training) is not None or training.device.name == "cpu":
        return None
    return _host_seconds(training, learn=True) / _fast_seconds(training, *_mean_pack(part), learn=True)


def general_seconds(training: Training, tokens: float, targets: float, document: float, learn: bool) -> float:
    """As transformers and peft take, with padding of rows, and exchanges between ranks."""
    tokens *= general.places(training) / training.tokens
    seconds = _product_seconds(training, tokens, targets, document, learn)
    host = 0.0
    if training.device.name != "cpu":
        _, passes = _passes(training, learn)
        moved = _moved_bytes(training, tokens, targets, learn)
        seconds += moved / (GENERAL_SHARE * training.device.bandwidth)
        seconds += GENERAL_PASS_SECONDS * training.model.blocks * passes
        host = passes * _general_host_seconds(training)
    return max(seconds, host, _exchange_seconds(training, learn))


def _general_host_seconds(training: Training) -> float:
    """Seconds in which the host issues the kernels of a pass through all blocks."""
    block, layer = GENERAL_HOST_SECONDS
    adapted = training.model.targets(training.lora.target_modules) if training.tuning.method == "lora" else []
    return block * training.model.blocks + layer * len(adapted)


def _passes(training: Training, learn: bool) -> tuple[int, int]:
    """Passes through the blocks: of products with weights, and of kernels, of which backward takes twice as many."""
    repeated = int(training.train.gradient_checkpointing)
    return (2 + repeated, 3 + repeated) if learn else (1, 1)


def _product_seconds(training: Training, tokens: float, targets: float, document: float, learn: bool) -> float:
    """Matrix products, and the passes over quantised blocks that precede them.

    Products cost two operations a weight and token. Backward takes as many for the gradient of the activations; only
    what is trained needs that of its weights too. Attention costs 2 × width a token, block and token of its document,
    since it looks back only, two and a half times that in backward; on a CPU, with a mask, each token counts the whole
    pack. Checkpointing repeats the forward pass of the blocks. Each pass over quantised blocks reads them, writes the
    compute type and reads it again.
    """
    model, device, train = training.model, training.device, training.train
    backward = 1 if learn else 0
    passes, _ = _passes(training, learn)
    trained = _trained_in_products(training)
    frozen = 0 if training.tuning.method == "full" else model.linear_parameters
    operations = (
        2 * frozen * passes * tokens
        + 2 * model.vocabulary * model.hidden * (1 + backward) * targets
        + 2 * trained * (passes + backward) * tokens
    )
    seen = 2 * tokens if device.name == "cpu" else document
    attention = 2 * seen * model.attention * model.blocks * (passes + 1.5 * backward) * tokens
    quantised = train.bits < 16 and training.tuning.method != "full"
    weight_bytes = weight_bits(training) / 8 + 2 * device.compute_bytes if quantised else 0
    weights = passes * model.linear_parameters * weight_bytes
    return operations / device.flops + attention / device.attention_flops + weights / device.bandwidth


def _moved_bytes(training: Training, tokens: float, targets: float, learn: bool) -> float:
    """What kernels beside the products read and write, backward twice what they do forward."""
    model = training.model
    hidden, rotated, inner = BLOCK_BYTES
    block = hidden * model.hidden + rotated * (model.attention + model.keys) + inner * model.intermediate
    _, passes = _passes(training, learn)
    moved = passes * model.blocks * block + LOSS_BYTES * model.vocabulary * targets / tokens
    if training.tuning.method == "lora":
        adapted = [model.linears[name] for name in model.targets(training.lora.target_modules)]
        moved += (passes - 0.2 if learn else 1) * _of_layers(adapted, ADAPTER_BYTES)
    if training.train.bits == 8 and training.tuning.method != "full":
        moved += (passes - 2 if learn else 1) * _of_layers(model.linears.values(), EIGHT_BIT_BYTES)
    return tokens * moved


def _of_layers(shapes: Iterable[tuple[int, int]], bytes_a_number: tuple[int, int]) -> int:
    """Bytes a token for each input and output of linear layers of these (rows, columns)."""
    inputs, outputs = bytes_a_number
    return sum(inputs * columns + outputs * rows for rows, columns in shapes)


def _exchange_seconds(training: Training, learn: bool) -> float:
    """Seconds in which ranks with divided weights gather them for a pack, and sum their gradients; beside computing.

    Forward and backward pass gather all weights in the compute type; gradients are summed in float32.
    """
    if not training.sharded:
        return 0.0
    number = training.device.compute_bytes
    bytes_a_weight = 2 * number + FLOAT32 if learn else number
    others = (training.ranks - 1) / training.ranks
    return others * training.model.parameters * bytes_a_weight / (LINK_SHARE * training.device.link)


def _trained_in_products(training: Training) -> int:
    """Trained weights that every token is multiplied with."""
    method = training.tuning.method
    if method == "full":
        return training.model.linear_parameters
    return trained_weights(training) if method == "lora" else 0


def _fast_seconds(training: Training, tokens: float, targets: float, document: float, learn: bool) -> float:
    """The same products, at the fast layers' speed, and what elementwise kernels read and write.

    A layer that is not kept repeats all of its forward pass but the last product. Attention of short documents
    is bound by memory too.
    """
    model, device = training.model, training.device
    width, inner, number = model.hidden, model.intermediate, device.compute_bytes
    backward = 1 if learn else 0
    again = 1 - fast.layers_kept(training) / model.blocks if learn else 0.0
    down = model.blocks * width * inner
    adapter = trained_weights(training)
    products = (
        2
        * tokens
        * (
            (1 + backward) * model.linear_parameters
            + again * (model.linear_parameters - down)
            + (1 + 2 * backward + again) * adapter
        )
        + 2 * model.vocabulary * width * (1 + backward) * targets
    )
    heads = 2 * (model.attention + 2 * model.keys)
    # Per token and layer, forward: two norms, rotation, a copy of attention's output, swiglu, attention itself.
    forward = (4 * width + heads + 2 * model.attention + 3 * inner + heads / 2 + model.attention) * number
    back = (10 * width + heads + 6 * inner + 2 * heads + 2 * model.attention) * number
    elementwise = tokens * model.blocks * ((1 + again) * forward + backward * back)
    attention = 4 * document * model.attention * model.blocks * (1 + again + 2.5 * backward) * tokens
    dequantised = (weight_bits(training) / 8 + number) * (
        (1 + backward) * model.linear_parameters + again * (model.linear_parameters - down)
    )
    traffic = elementwise + (0 if fast.dequantised(training) else dequantised)
    seconds = products / device.flops + attention / device.attention_flops + traffic / (MEMORY_SHARE * device.bandwidth)
    return seconds / BUSY


def _host_seconds(training: Training, learn: bool) -> float:
    """Seconds in which the host issues a pack's kernels: models with narrow layers wait for it."""
    blocks = training.model.blocks
    issue = HOST_SECONDS_DEQUANTISED if fast.dequantised(training) else HOST_SECONDS
    return issue * (1.2 * blocks - 0.2 * fast.layers_kept(training) if learn else blocks / 2)


def optimizer_seconds(training: Training) -> float:
    """Seconds of one optimizer step."""
    trained = trained_weights(training) / (training.ranks if training.sharded else 1)
    share = 1.0 if training.device.name == "cpu" else MEMORY_SHARE
    return trained * OPTIMIZER_BYTES / (share * training.device.bandwidth)


def mean_seconds(training: Training, part: Part, learn: bool = True) -> float:
    """Seconds of one pack of mean size."""
    return seconds_per_pack(training, *_mean_pack(part), learn)


def _mean_pack(part: Part) -> tuple[float, float, float]:
    """Tokens and targets of a pack, and tokens of a document."""
    return part.tokens / part.packs, part.targets / part.packs, part.tokens / part.samples


def training_hours(training: Training, train: Part, validation: Part) -> tuple[float, float]:
    """Seconds of an optimizer step, and hours of all steps and validations; ranks share the packs of each."""
    pack, optimizer, ranks = mean_seconds(training, train), optimizer_seconds(training), training.ranks
    full_steps, rest = divmod(train.packs, train.packs_per_step)
    rounds = full_steps * math.ceil(train.packs_per_step / ranks) + math.ceil(rest / ranks)
    step = math.ceil(min(train.packs_per_step, train.packs) / ranks) * pack + optimizer
    validations = math.ceil(train.steps / training.train.eval_steps)
    one_validation = math.ceil(validation.packs / ranks) * mean_seconds(training, validation, learn=False)
    return step, (rounds * pack + train.steps * optimizer + validations * one_validation) / 3600


def slurm_request(training: Training, memory: int, hours: float) -> Slurm:
    """One node for `hours` of training, where a rank needs `memory` bytes on its device.

    A rank on a GPU needs main memory for the weights as they are loaded, its libraries, and moments that are paged.
    """
    ranks, on_cpu = training.ranks, training.device.name == "cpu"
    loading = (4 if training.tuning.method == "full" else 2) * training.model.parameters
    if training.sharded:  # each rank reads its rows: of a checkpoint weights and moments
        loading = 12 * training.model.parameters // ranks
    rank_memory = memory + loading if on_cpu else loading + LIBRARIES + paged_bytes(training)
    quarters = math.ceil(4 * (TIME_MARGIN * hours + STARTUP_HOURS))
    return Slurm(
        nodes=1,
        gpus=0 if on_cpu else ranks,
        cpus=ranks * (training.train.threads if on_cpu else CPUS_PER_GPU),
        mem_gb=math.ceil(ranks * rank_memory / GB),
        time=clock(min(quarters / 4, LONGEST_JOB_HOURS) * 3600),
    )
