"""What computes the loss of a pack: fast layers where they exist, else transformers and peft as they are."""

import logging
from typing import Any, Protocol

import torch

from corax.settings.train import TrainSettings
from corax.train.fast.engine import FastEngine, place_embedding, unsupported
from corax.train.general import GeneralEngine, transformers_model
from corax.train.packs import Batch
from corax.train.seq2seq import Seq2SeqEngine
from corax.train.virtual import VirtualTokensEngine, has_virtual_tokens

log = logging.getLogger("corax")


class Engine(Protocol):
    """Computes losses of a peft model."""

    model: Any
    device: torch.device
    """Where it computes; not all weights need be there."""

    def loss_sum(self, batch: Batch, seed: int | None) -> torch.Tensor:
        """Cross-entropy summed over the targets of a pack, in nats; `seed` of dropout, None: none."""

    def target_logits(self, batch: Batch) -> torch.Tensor:
        """Logits (n, vocabulary) at the positions that predict a target, without dropout or gradients."""


def make_engine(model: Any, train: TrainSettings, longest: int) -> Engine:
    """The engine for `model`, with its adapter; `longest`: tokens of the longest document.

    It takes the model over: where weights lie, and whether activations are recomputed, is changed for this engine.
    """
    reason = unsupported(model, longest)
    if model.device.type == "cpu":
        reason = "no GPU"
    if reason is None:
        layers = len(model.get_base_model().model.layers)
        kept = 0 if train.gradient_checkpointing else layers
        kept = kept if train.layers_kept is None else min(train.layers_kept, layers)
        log.info("fast layers; activations of %d of %d layers kept", kept, layers)
        place_embedding(model, kept)
        return FastEngine(model, kept, bool(train.dequantised_base))
    log.info("plain transformers and peft: %s", reason)
    if train.gradient_checkpointing:
        transformers_model(model).gradient_checkpointing_enable({"use_reentrant": False})
    if model.config.is_encoder_decoder:
        return Seq2SeqEngine(model)
    if has_virtual_tokens(model):
        return VirtualTokensEngine(model)
    return GeneralEngine(model)
