"""The fast engine: a Llama-family model with peft adapters, computed by this package's decoder layers.

The weights, their names and the files stay peft's; only the computation is another.
"""

from typing import Any

import torch
from peft import PeftModel, PeftType

from corax.train.attention import Documents
from corax.train.fast.elementwise import rms_norm
from corax.train.fast.head import HeadLoss
from corax.train.fast.layer import DecoderLayer, Pack
from corax.train.fast.limits import FAMILIES
from corax.train.fast.lora import Dropout
from corax.train.fast.quantised import BLOCK
from corax.train.packs import Batch


class FastEngine:
    """Computes losses of `model`, a peft model that `unsupported` has nothing against.

    The last `kept` layers keep their activations for the backward pass, the others only their input. With `resident`
    the dequantised base stays in memory. The embedding is read wherever it lies: `place_embedding`.
    """

    def __init__(self, model: Any, kept: int, resident: bool) -> None:
        self.model = model
        self.base = model.get_base_model()
        self.decoder = self.base.model
        self.dtype = self.decoder.embed_tokens.weight.dtype
        self.device = self.decoder.norm.weight.device
        self.dropout = float(model.peft_config["default"].lora_dropout)
        self.norm = self.decoder.norm
        self.eps = float(self.norm.variance_epsilon)
        count = len(self.decoder.layers)
        self.layers = [
            DecoderLayer(
                layer, number, self.dtype, kept=number >= count - kept, resident=resident, last=number == count - 1
            )
            for number, layer in enumerate(self.decoder.layers)
        ]

    def loss_sum(self, batch: Batch, seed: int | None) -> torch.Tensor:
        """Cross-entropy summed over the targets of a pack (on the CPU), in nats; `seed` None: no dropout."""
        hidden = self._hidden(batch, seed)
        targets = batch.targets.to(self.device, non_blocking=True)
        loss: torch.Tensor = HeadLoss.apply(hidden, self.norm.weight, self.eps, self.base.lm_head.weight, targets)  # type: ignore[no-untyped-call]
        return loss

    @torch.no_grad()
    def target_logits(self, batch: Batch) -> torch.Tensor:
        """Logits (n, vocabulary) at the positions that predict a target."""
        hidden = self._hidden(batch, None)
        normal = torch.empty_like(hidden)
        rms_norm(hidden, self.norm.weight, self.eps, normal)
        logits: torch.Tensor = normal @ self.base.lm_head.weight.t()
        return logits

    def _hidden(self, batch: Batch, seed: int | None) -> torch.Tensor:
        """The last layer's output (n, width) at the positions that predict a target."""
        positions, predicts = (
            tensor.to(self.device, non_blocking=True) for tensor in (batch.position_ids, batch.predicts)
        )
        hidden = self._embedded(batch.input_ids[0])
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        documents = Documents.from_positions(batch.position_ids, self.device)
        pack = Pack(cos[0], sin[0], documents, self._dropouts(seed), predicts)
        for layer in self.layers:
            hidden = layer(hidden, pack)
        return hidden

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings (T, width) of ids (T,)."""
        weight = self.decoder.embed_tokens.weight.detach()
        pinned = weight.device != self.device  # memory that the device reads while the host goes on
        rows = torch.empty((len(ids), weight.shape[1]), dtype=self.dtype, device=weight.device, pin_memory=pinned)
        torch.index_select(weight, 0, ids.to(weight.device, non_blocking=True), out=rows)
        return rows.to(self.device, non_blocking=True)

    def _dropouts(self, seed: int | None) -> Any:
        """Dropout by number: a function of `seed` alone, whatever runs on which rank and how often."""
        if seed is None or not self.dropout:
            return lambda number: None
        generator = torch.Generator().manual_seed(seed)
        low, high = -(2**31), 2**31 - 1
        keys = torch.randint(low, high, (4 * len(self.layers),), generator=generator, dtype=torch.int32)
        on_device = keys.to(self.device, non_blocking=True)
        return lambda number: Dropout(self.dropout, on_device[number])


def place_embedding(model: Any, kept: int) -> None:
    """Move the embedding of `model` to where FastEngine with `kept` layers is to read it.

    If these are not all layers memory is short, and it goes to the host: of a pack only its own rows travel. Else it
    goes to the device, where other engines need it; it never leaves it if it is the output head too.
    """
    base = model.get_base_model()
    embedding, layers = base.model.embed_tokens, base.model.layers
    stays = kept >= len(layers) or embedding.weight is base.lm_head.weight
    embedding.to(base.model.norm.weight.device if stays else "cpu")


def unsupported(model: Any, longest: int) -> str | None:
    """Why FastEngine cannot compute `model`, None if it can; `longest`: tokens of a document."""
    if not isinstance(model, PeftModel):
        return "all weights are trained"
    adapter = model.active_peft_config
    if adapter.peft_type != PeftType.LORA:
        return f"{adapter.peft_type.value.lower()} instead of LoRA"
    if adapter.modules_to_save or adapter.trainable_token_indices:
        return "other weights than LoRA's are trained"
    config, base = model.config, model.get_base_model()
    if config.model_type not in FAMILIES:
        return f"no fast layers for the architecture {config.model_type}"
    if config.hidden_act != "silu" or getattr(config, "partial_rotary_factor", None) not in (None, 1.0):
        return "another activation, or rotary positions on part of a head"
    if getattr(config, "sliding_window", None) is not None and config.sliding_window < longest:
        return f"a sliding window of {config.sliding_window} tokens, documents of up to {longest}"
    if getattr(config, "resid_pdrop", 0.0) or config.attention_dropout:
        return "dropout inside the base model"
    if base.lm_head.bias is not None:
        return "an output head with a bias"
    for layer in base.model.layers:
        for block in (layer.self_attn, layer.mlp):
            problem = _unsupported_linears(block)
            if problem:
                return problem
    return None


def _unsupported_linears(block: Any) -> str | None:
    linears = {name: module for name, module in block.named_children() if name.endswith("_proj")}
    for name, module in linears.items():
        base = getattr(module, "base_layer", None)
        if base is None or list(module.lora_A) != ["default"]:
            return f"{name} has no adapter"
        if getattr(base.weight, "quant_state", None) is None or base.weight.quant_state.blocksize != BLOCK:
            return f"{name} is not quantised to 4 bits"
        if base.weight.quant_state.shape[1] % BLOCK:
            return f"{name} has {base.weight.quant_state.shape[1]} inputs, no multiple of {BLOCK}"
        if module.lora_variant or module.lora_bias["default"]:
            return f"{name} has another kind of adapter than LoRA"
        if base.bias is not None and name in ("o_proj", "down_proj", "gate_up_proj"):
            return f"{name} has a bias"
    return None
