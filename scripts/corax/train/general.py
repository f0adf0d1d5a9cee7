"""The loss of a pack as transformers and peft compute it, for any causal language model."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AttentionInterface, AttentionMaskInterface

from corax import hardware
from corax.train.attention import Documents, attend, has_varlen
from corax.train.packs import Batch
from corax.train.sharded import is_divided

PACKED_ATTENTION = "corax_packed"
"""Name under which transformers finds `attend`."""


class TransformersEngine:
    """What engines on transformers' own forward pass share; see `corax.train.engine.Engine`.

    What is trained is in float32; it is computed with in 16 bits where the hardware has them.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        dtype = hardware.compute_dtype(self.device)
        is_mixed = _is_mixed(model, dtype)
        self.autocast = torch.autocast(self.device.type, dtype, enabled=is_mixed)
        if is_mixed:
            _leave_casting_to_autocast(model)

    def loss_sum(self, batch: Batch, seed: int | None) -> torch.Tensor:
        """See `Engine`."""
        self.model.train(seed is not None)
        if seed is not None:
            torch.manual_seed(seed)
        logits = self._logits(batch).float()
        return torch.nn.functional.cross_entropy(logits, batch.targets.to(self.device), reduction="sum")

    @torch.no_grad()
    def target_logits(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        self.model.eval()
        return self._logits(batch)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Logits (n, vocabulary) at the positions that predict a target."""
        raise NotImplementedError


class GeneralEngine(TransformersEngine):
    """Any decoder-only model without virtual tokens, as transformers and peft compute it.

    Samples are told apart by their positions; on a GPU attention gets explicit boundaries instead of a T × T mask.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        is_usual = model.config._attn_implementation in ("sdpa", PACKED_ATTENTION)
        self.boundaries = is_usual and has_varlen(self.device, hardware.compute_dtype(self.device))
        if self.boundaries:
            AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
            AttentionMaskInterface.register(PACKED_ATTENTION, lambda *arguments, **options: None)
            transformers_model(model).set_attn_implementation(PACKED_ATTENTION)

    def _logits(self, batch: Batch) -> torch.Tensor:
        options = {"documents": Documents.from_positions(batch.position_ids, self.device)} if self.boundaries else {}
        moved = batch.to(self.device)
        with self.autocast:
            logits: torch.Tensor = self.model(
                input_ids=moved.input_ids,
                position_ids=moved.position_ids,
                use_cache=False,
                logits_to_keep=moved.predicts,
                **options,
            ).logits
        return logits[0]


def transformers_model(model: Any) -> Any:
    """transformers' model without what peft put around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _is_mixed(model: Any, dtype: torch.dtype) -> bool:
    """Whether weights are trained in float32 that products take in the 16-bit `dtype`.

    Divided weights are gathered in that type: nothing is left to cast.
    """
    wide = any(each.requires_grad and each.dtype == torch.float32 for each in model.parameters())
    return wide and dtype != torch.float32 and not is_divided(model)


def _leave_casting_to_autocast(model: Any) -> None:
    """Otherwise peft's layers copy their inputs to float32, which the next product casts back and keeps once more."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **options: Any
) -> tuple[torch.Tensor, None]:
    """transformers' form of `attend`: query (1, heads, T, d) in, output (1, T, heads, d)."""
    window = options.get("sliding_window")
    documents: Documents = options["documents"]
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(query, key, value, documents, scaling, window)[None], None
