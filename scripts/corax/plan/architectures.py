"""The tensors of a model from its config.json alone: names and shapes as transformers gives them.

So a model can be planned for before anything of it is downloaded. Where weights are there, their headers are read
instead (model.py), and nothing here is needed.
"""

from collections.abc import Mapping
from typing import Any

from corax.errors import CoraxError

Shape = tuple[int, ...]

ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
    "vocab_size": ("vocab_size",),
}
"""What a size is called in the configurations of Llama and its like, of GPT's, and of T5."""
TIED_BY_DEFAULT = ("gemma", "gemma2", "gpt2", "gpt_bigcode", "t5")
"""Architectures whose output head is the embedding unless the configuration says otherwise."""


def size(config: Mapping[str, Any], key: str, origin: str = "config.json") -> int:
    """A size by its Llama name; raises CoraxError naming `origin` if it is missing or no positive integer."""
    value = next((config[name] for name in ALIASES[key] if config.get(name) is not None), None)
    if not isinstance(value, int) or value < 1:
        raise CoraxError(f"{origin}: {key} is {value!r}, a positive integer is needed to plan for this model")
    return value


def intermediate(config: Mapping[str, Any], origin: str) -> int:
    """Width of the MLP; GPT's configurations may leave it out and mean 4 times the width."""
    if "n_embd" in config and config.get("n_inner") is None:
        return 4 * size(config, "hidden_size", origin)
    return size(config, "intermediate_size", origin)


def head_size(config: Mapping[str, Any], origin: str) -> int:
    """Width of one attention head."""
    explicit = config.get("head_dim") or config.get("d_kv")
    return explicit or size(config, "hidden_size", origin) // size(config, "num_attention_heads", origin)


def key_value_heads(config: Mapping[str, Any], origin: str) -> int:
    """Heads of key and value: as many as of the query, fewer (grouped queries) or one."""
    if config.get("multi_query", config.get("model_type") == "gpt_bigcode"):
        return 1
    return config.get("num_key_value_heads") or size(config, "num_attention_heads", origin)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding."""
    return bool(config.get("tie_word_embeddings", config.get("model_type") in TIED_BY_DEFAULT))


def shapes(config: Mapping[str, Any], origin: str = "config.json") -> dict[str, Shape]:
    """Name and shape of every parameter of a model with this configuration, a tied output head left out.

    Raises CoraxError for an architecture that is not known here.
    """
    family = config.get("model_type")
    if family in ("llama", "mistral", "qwen2", "gemma2", "phi3"):
        found = _llama(config, origin)
    elif family == "gpt_bigcode":
        found = _gpt_bigcode(config, origin)
    elif family == "t5":
        found = _t5(config, origin)
    else:
        raise CoraxError(
            f"{origin}: model_type is {family!r}, without weights the shapes are known for gemma2, gpt_bigcode, llama, "
            "mistral, phi3, qwen2 and t5"
        )
    if not is_tied(config):
        found["lm_head.weight"] = (size(config, "vocab_size", origin), size(config, "hidden_size", origin))
    return found


def _llama(config: Mapping[str, Any], origin: str) -> dict[str, Shape]:
    hidden, inner = size(config, "hidden_size", origin), intermediate(config, origin)
    queries = size(config, "num_attention_heads", origin) * head_size(config, origin)
    keys = key_value_heads(config, origin) * head_size(config, origin)
    linears: dict[str, Shape]
    if config["model_type"] == "phi3":
        linears = {"self_attn.qkv_proj": (queries + 2 * keys, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
    else:
        rows = {"q": queries, "k": keys, "v": keys}
        linears = {f"self_attn.{name}_proj": (count, hidden) for name, count in rows.items()}
        linears |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    block: dict[str, Shape] = {f"{name}.weight": shape for name, shape in linears.items()}
    block |= {"self_attn.o_proj.weight": (hidden, queries), "mlp.down_proj.weight": (hidden, inner)}
    biased = ["q_proj", "k_proj", "v_proj"] if config["model_type"] == "qwen2" else []
    if config.get("attention_bias"):
        biased = ["q_proj", "k_proj", "v_proj", "o_proj"]
    block |= {f"self_attn.{name}.bias": block[f"self_attn.{name}.weight"][:1] for name in biased}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    block |= {f"{name}.weight": (hidden,) for name in norms}
    outside: dict[str, Shape] = {
        "model.embed_tokens.weight": (size(config, "vocab_size", origin), hidden),
        "model.norm.weight": (hidden,),
    }
    return outside | _repeat("model.layers", size(config, "num_hidden_layers", origin), block)


def _gpt_bigcode(config: Mapping[str, Any], origin: str) -> dict[str, Shape]:
    hidden, inner = size(config, "hidden_size", origin), intermediate(config, origin)
    keys = key_value_heads(config, origin) * head_size(config, origin)
    linears = {
        "attn.c_attn": (hidden + 2 * keys, hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (inner, hidden),
        "mlp.c_proj": (hidden, inner),
    }
    block: dict[str, Shape] = {f"{name}.weight": shape for name, shape in linears.items()}
    block |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    block |= {f"{norm}.{kind}": (hidden,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    outside: dict[str, Shape] = {
        "transformer.wte.weight": (size(config, "vocab_size", origin), hidden),
        "transformer.wpe.weight": (size(config, "max_position_embeddings", origin), hidden),
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
    }
    return outside | _repeat("transformer.h", size(config, "num_hidden_layers", origin), block)


def _t5(config: Mapping[str, Any], origin: str) -> dict[str, Shape]:
    hidden, inner = size(config, "hidden_size", origin), intermediate(config, origin)
    heads = size(config, "num_attention_heads", origin)
    width, layers = heads * head_size(config, origin), size(config, "num_hidden_layers", origin)
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    mlp: dict[str, Shape] = {f"wi{end}.weight": (inner, hidden) for end in (("_0", "_1") if gated else ("",))}
    mlp["wo.weight"] = (hidden, inner)

    def attention(name: str) -> dict[str, Shape]:
        rows: dict[str, Shape] = {f"{name}.{part}.weight": (width, hidden) for part in "qkv"}
        return rows | {f"{name}.o.weight": (hidden, width)}

    found: dict[str, Shape] = {"shared.weight": (size(config, "vocab_size", origin), hidden)}
    stacks = {
        "encoder": (layers, [attention("SelfAttention"), _inside("DenseReluDense", mlp)]),
        "decoder": (
            config.get("num_decoder_layers") or layers,
            [attention("SelfAttention"), attention("EncDecAttention"), _inside("DenseReluDense", mlp)],
        ),
    }
    for stack, (count, parts) in stacks.items():
        block: dict[str, Shape] = {}
        for number, part in enumerate(parts):
            block |= _inside(f"layer.{number}", part | {"layer_norm.weight": (hidden,)})
        found |= _repeat(f"{stack}.block", count, block)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = (config.get("relative_attention_num_buckets", 32), heads)
        found[f"{stack}.final_layer_norm.weight"] = (hidden,)
    return found


def _inside(name: str, tensors: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"{name}.{tensor}": shape for tensor, shape in tensors.items()}


def _repeat(name: str, count: int, block: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"{name}.{number}.{tensor}": shape for number in range(count) for tensor, shape in block.items()}
