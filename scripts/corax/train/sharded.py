"""Models too big for one device: weights, gradients and AdamW's moments divided over the ranks.

PyTorch's fully_shard (FSDP2; the method is ZeRO-3, arXiv 1910.02054). Each rank keeps its rows of every weight in
float32. A layer is gathered in the compute type when it is needed and let go after its forward and its backward pass;
its gradient is summed over the ranks in float32, and each rank keeps the rows that are its own.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from corax import hardware
from corax.errors import CoraxError
from corax.model import empty_model, stored_dtype
from corax.train import tensors


def load(folder: Path, device: torch.device) -> Any:
    """The language model in `folder`, divided over the ranks; each reads the rows that it keeps, and no more.

    Raises CoraxError if weights are missing, or stored otherwise than the model has them.
    """
    model = divide(empty_model(folder), device)
    share = (dist.get_rank(), dist.get_world_size())
    with ExitStack() as stack, torch.no_grad():
        stored: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file: Any = stack.enter_context(safe_open(path, framework="pt"))
            stored |= dict.fromkeys(file.keys(), file)
        for name, parameter in model.named_parameters():
            found = stored.get(name)
            shape = None if found is None else tuple(found.get_slice(name).get_shape())
            if found is None or shape != tuple(parameter.shape):
                raise CoraxError(
                    f"{folder}: train.fsdp needs each weight as the model has it: {name} of shape "
                    f"{tuple(parameter.shape)}, found {'none' if shape is None else shape}"
                )
            tensors.local(parameter).copy_(tensors.read_rows(found, name, share))
    return model


def divide(model: Any, device: torch.device) -> Any:
    """`model`, whose weights are on the device `meta`, with room on `device` for this rank's rows of them.

    Its layers are those that can be recomputed; what is outside of them, such as the embedding, is gathered together.
    """
    dtype = hardware.compute_dtype(device) if device.type == "cuda" else None
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        # The outermost part too, which by default stays gathered: then its weights would not be the optimizer's.
        "reshard_after_forward": True,
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, **options)
    fully_shard(model, **options)
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is a sum over the packs of all ranks, so gradients are summed; by default they are averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def is_divided(model: Any) -> bool:
    """Whether the weights of `model` are divided over the ranks."""
    return isinstance(next(model.parameters()), DTensor)


def save(model: Any, folder: Path, base: Path) -> None:
    """Write a model folder with the weights in the type of the folder `base`; the other ranks `take_part`."""
    for name in ("config.json", "generation_config.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    tensors.write(folder / "model.safetensors", dict(model.named_parameters()), stored_dtype(base))


def take_part(model: Any, base: Path) -> None:
    """What a rank must do while another one writes the model with `save`."""
    for _ in tensors.gather(dict(model.named_parameters()), stored_dtype(base)):
        pass
