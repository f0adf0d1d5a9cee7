"""What a model folder must hold to be usable: configuration, safetensors weights, tokenizer."""

import json
from collections import Counter
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

from corax import safetensors_header
from corax.download import files
from corax.errors import CoraxError
from corax.safetensors_header import Tensor

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def require(names: Collection[str], origin: str) -> None:
    """Raise CoraxError if the file names alone show that `origin` is no usable model folder."""
    if "config.json" not in names:
        raise CoraxError(f"{origin}: a model folder without config.json")
    if not {"model.safetensors", INDEX} & set(names):
        pickled = sorted(name for name in names if name.endswith(PICKLED))
        hint = f"; {pickled[0]} is pickled and never loaded, convert it" if pickled else ""
        raise CoraxError(f"{origin}: a model folder without weights, needs model.safetensors or {INDEX}{hint}")
    convertible = "tokenizer.model" in names or {"vocab.json", "merges.txt"} <= set(names)
    if "tokenizer.json" not in names and not convertible:
        raise CoraxError(
            f"{origin}: a model folder without tokenizer, needs tokenizer.json, tokenizer.model, "
            "or vocab.json and merges.txt"
        )


def check(folder: Path, origin: str) -> dict[str, Any]:
    """Check the files' content, make `tokenizer.json` where only its parts are there; facts about the model.

    The facts: `model_type`, `parameters` (stored numbers) and `dtypes` (safetensors' names, with the number
    of parameters of each). Raises CoraxError naming `origin` and the file.
    """
    names = {path.name for path in folder.iterdir()}
    require(names, origin)
    config = _read_json(folder / "config.json", origin)
    if not isinstance(config.get("model_type"), str):
        raise CoraxError(f"{origin}: config.json: model_type is missing")
    if "quantization_config" in config:
        raise CoraxError(f"{origin}: config.json: already quantised; give the 16-bit original, corax quantises it")
    dtypes = _check_weights(folder, names, origin)
    if "tokenizer.json" not in names:
        _convert_tokenizer(folder, origin)
    _check_tokenizer(folder, origin)
    return {"model_type": config["model_type"], "parameters": sum(dtypes.values()), "dtypes": dtypes}


def _check_weights(folder: Path, names: Collection[str], origin: str) -> dict[str, int]:
    """Parameters by dtype, after a check that all files are whole and hold the tensors that the index names."""
    weight_map: dict[str, str] = {}
    shards = ["model.safetensors"]
    if "model.safetensors" not in names:
        weight_map = _read_json(folder / INDEX, origin).get("weight_map", {})
        if not isinstance(weight_map, dict) or not weight_map:
            raise CoraxError(f"{origin}: {INDEX}: weight_map is missing, empty or no mapping")
        shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise CoraxError(f"{origin}: {missing[0]} is missing, though {INDEX} names it ({len(missing)} missing in all)")
    tensors = {shard: _tensors(folder / shard, origin) for shard in shards}
    for name, shard in weight_map.items():
        if name not in tensors[shard]:
            raise CoraxError(f"{origin}: {shard}: has no tensor {name}, though {INDEX} names it")
    dtypes: Counter[str] = Counter()
    for tensor in (each for stored in tensors.values() for each in stored.values()):
        dtypes[tensor.dtype] += prod(tensor.shape)
    return dict(sorted(dtypes.items()))


def _tensors(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors in a safetensors file, after a check of its size."""
    try:
        header = safetensors_header.read(path)
    except CoraxError:
        raise CoraxError(f"{origin}: {path.name}: damaged or no safetensors file") from None
    size = path.stat().st_size
    if size != header.size:
        raise CoraxError(f"{origin}: {path.name}: {size} bytes found, {header.size} expected: truncated or damaged")
    return header.tensors


def _convert_tokenizer(folder: Path, origin: str) -> None:
    """Write `tokenizer.json` from the older files beside it."""
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    except Exception as error:  # transformers raises whatever the model's own class meets
        reason = files.first_line(error)
        raise CoraxError(f"{origin}: no tokenizer.json, and the tokenizer cannot be converted ({reason})") from None


def _check_tokenizer(folder: Path, origin: str) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise CoraxError(f"{origin}: tokenizer.json cannot be read ({files.first_line(error)})") from None


def _read_json(path: Path, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CoraxError(f"{origin}: {path.name}: damaged, it is no JSON") from None
    if not isinstance(content, dict):
        raise CoraxError(f"{origin}: {path.name}: must be a JSON object")
    return content
