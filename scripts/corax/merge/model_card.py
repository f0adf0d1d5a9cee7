"""The README.md of a merged model: base and licence, data, plan, scores, how to rebuild it."""

import json
from collections.abc import Mapping
from typing import Any

from corax.architecture import is_encoder_decoder
from corax.artifact import Manifest

CARD = """\
---
{front_matter}
---

# {run}: {base}, fine-tuned with {name}

{how}

## Base

`{base}`, licence: {license}. The terms of the base hold for this model too.

{source}

## Data and training

{inputs}

{plan}

{settings}

## Scores

On {samples} held-out samples ({target_tokens} target tokens), in nats per target token; the divergence is the
mean of KL(trained ‖ merged) of the next-token distributions.

| model | loss | divergence |
| --- | --- | --- |
| as trained | {trained} | 0 |
{candidates}

## Rebuild

In a copy of corax {version}, with the configuration of this run:

    snakemake --cores all results/runs/{run}/merged/manifest.json

| made from | digest |
| --- | --- |
| base | `{base_digest}` |
| adapter | `{adapter_digest}` |
"""
ONTO = {"original": "the base's original weights", "nf4": "the base's weights as training saw them, through 4 bits"}
"""What the adapter was added onto, by `merge.base`."""
LOADS = "`{loader}.from_pretrained` loads this folder."
ADDED = (
    "was trained on the {bits}-bit base, then added onto {onto}\n({formula}, computed in float32, rounded once). "
    + LOADS
)
BESIDE = (
    "Tokens were trained beside the {bits}-bit base; they lie in `adapter/`, in peft's format. "
    "`PeftModel.from_pretrained`\nputs them onto the model that this folder holds; without them it is the base."
)
HOW = {
    "lora": "A LoRA adapter " + ADDED,
    "ia3": "An IA3 adapter " + ADDED,
    "full": "All weights were trained in float32 and rounded once to the type of the base. " + LOADS,
    "prompt_tuning": BESIDE,
    "prefix_tuning": BESIDE,
    "adaption_prompt": BESIDE,
}
"""What the card says of each `tuning.method`."""
FORMULAS = {"lora": "W + scale · B·A", "ia3": "W times its factors"}
PLAN = ("steps", "packs_per_step", "max_length", "epochs", "device", "devices")
"""What the card says of plan.json."""


def model_card(
    base: Manifest,
    adapter: Manifest,
    plan: Mapping[str, Any],
    kept: str,
    scores: Mapping[str, Any],
    method: str,
) -> str:
    """The card as text; the same arguments give the same text.

    `plan` is the content of plan.json, `scores` those of `corax.merge.scores.compare`, `kept` the candidate that
    this model is, `method` the way it was tuned.
    """
    bits = adapter.content["settings"].get("train", {}).get("bits", 4)
    has_encoder = is_encoder_decoder(base.artifact)
    source = _flat(base.content["settings"])
    licence = next((str(value) for key, value in source.items() if key.split(".")[-1] == "license"), "unknown")
    repository = next((str(value) for key, value in source.items() if key.split(".")[-1] == "repository"), None)
    front_matter = {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation" if has_encoder else "text-generation",
        "license": licence.lower(),
        **({"base_model": repository} if repository else {}),
        "tags": ["qlora" if (method, bits) == ("lora", 4) else method, "corax"],
    }
    samples = plan.get("train", {})
    planned = {f"plan.{key}": plan[key] for key in PLAN if key in plan}
    planned |= {f"plan.train.{key}": samples[key] for key in ("samples", "tokens", "target_tokens") if key in samples}
    return CARD.format(
        front_matter="\n".join(f"{key}: {json.dumps(value)}" for key, value in front_matter.items()),
        run=adapter.artifact.parent.name,
        base=base.artifact.name,
        license=licence,
        name="QLoRA" if (method, bits) == ("lora", 4) else method,
        how=HOW[method].format(
            bits=bits,
            onto=ONTO[kept],
            formula=FORMULAS.get(method),
            loader="AutoModelForSeq2SeqLM" if has_encoder else "AutoModelForCausalLM",
        ),
        source=_list(source),
        inputs="\n".join(f"- made from `{item['path']}` ({item['digest'][:12]})" for item in adapter.content["inputs"]),
        plan=_list(planned),
        settings=_list(_flat(adapter.content["settings"])),
        samples=scores["samples"],
        target_tokens=scores["target_tokens"],
        trained=scores["trained"]["loss"],
        candidates="\n".join(_row(name, scores[name], name == kept) for name in ONTO if name in scores),
        version=adapter.content["code"]["version"],
        base_digest=base.digest,
        adapter_digest=adapter.digest,
    )


def _row(name: str, score: Mapping[str, float], kept: bool) -> str:
    label = f"merged onto {ONTO[name]}"
    return f"| {f'**{label}: this model**' if kept else label} | {score['loss']} | {score['kl']} |"


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one mapping with keys such as `lora.r`; settings that are not given are left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in _flat(value).items()}
        elif value is not None:
            flat[key] = value
    return flat


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{key}`: `{json.dumps(value, ensure_ascii=False)}`" for key, value in values.items())
