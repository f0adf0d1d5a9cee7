"""How a merged model is talked to: it ends where its training samples ended, and chats in their format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corax.json_object import read_object


def write_generation(folder: Path, template: Mapping[str, Any]) -> None:
    """Give the model folder the end token and the chat template of `template`, the facts of `corax.template.Template`.

    A base may have no chat template, another end, or a template with a system message of its own. A model that was not
    trained on conversations keeps that of its base.
    """
    end = template["end"]["id"]
    file = folder / "generation_config.json"
    config = read_object(file) if file.is_file() else {}
    known = config.get("eos_token_id", read_object(folder / "config.json").get("eos_token_id"))
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end not in ends:
        file.write_text(json.dumps(config | {"eos_token_id": [end, *ends]}, indent=2) + "\n", encoding="utf-8")
    if template["kind"] == "messages":
        (folder / "chat_template.jinja").write_text(chat_template(template), encoding="utf-8")


def chat_template(template: Mapping[str, Any]) -> str:
    """transformers' chat template (Jinja) for conversations in the format of `template`."""
    names = ("begin", "header_start", "header_end", "end")
    begin, start, stop, end = (_quoted((template[name] or {"token": ""})["token"]) for name in names)
    after_role = _quoted("\n") if template["header_end"] is None else f"{stop} + {_quoted(2 * chr(10))}"
    between = _quoted("" if template["format"] == "llama3" else "\n")
    ending = f"({end} if message.role == 'assistant' else '')" if template["format"] == "plain" else end
    return (
        f"{{{{- {begin} }}}}"
        "{%- for message in messages %}"
        f"{{%- if not loop.first %}}{{{{- {between} }}}}{{%- endif %}}"
        f"{{{{- {start} + message.role + {after_role} + message.content + {ending} }}}}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        f"{{{{- {between} + {start} + 'assistant' + {after_role} }}}}"
        "{%- endif %}"
    )


def _quoted(text: str) -> str:
    """A string of Jinja, which reads those of JSON."""
    return json.dumps(text, ensure_ascii=False)
