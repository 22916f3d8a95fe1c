"""What trainers leave beside an adapter: its tokenizer and chat template, which are not used here.

Prompts are made with the base model's own. Where the adapter was trained with others, its user
should know.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cluster.adapters import BaseModelFacts

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def notices_beside(folder: Path, base: BaseModelFacts, trained_on: str) -> list[str]:
    """What differs between the base model that an adapter was trained on, as its folder shows it,
    and the one that it will run on."""
    notices = []
    if trained_on and not _is_kin(trained_on, base):
        notices.append(
            f"it was trained on {trained_on[:200]!r}, by its configuration; its shapes fit "
            f"{base.id} ({base.name or base.architecture}), on which it will run"
        )
    if base.chat_template and template_of(folder) not in ("", base.chat_template):
        notices.append(
            "its folder has another chat template than the base model; prompts are made with the "
            "base model's"
        )
    if base.vocabulary and vocabulary_of(folder) not in ("", base.vocabulary):
        notices.append(
            "its folder has another tokenizer than the base model; the base model's is used, which "
            "may not know its added tokens"
        )
    return notices


def template_of(folder: Path) -> str:
    """sha256 of the chat template in a folder; "" where there is none."""
    file = folder / CHAT_TEMPLATE
    template: Any = file.read_text(errors="replace") if file.is_file() else ""
    template = template or _object(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if _is_named(t)}
        template = named.get("default")
    if not isinstance(template, str) or not template.strip():
        return ""
    return hashlib.sha256(template.strip().encode(errors="replace")).hexdigest()


def vocabulary_of(folder: Path) -> str:
    """sha256 over the tokens and their numbers in a folder's tokenizer; "" where there is none."""
    tokenizer = _object(folder / TOKENIZER)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a unigram model: token and score, by number
        firsts = (e[0] if isinstance(e, list) and e else None for e in vocabulary)
        vocabulary = {token: n for n, token in enumerate(firsts) if isinstance(token, str)}
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        return ""
    entries = [entry for entry in added if isinstance(entry, dict)]
    numbered = [*vocabulary.items(), *((e.get("content"), e.get("id")) for e in entries)]
    tokens = {f"{token}\0{n}" for token, n in numbered if isinstance(token, str)}
    return hashlib.sha256("\n".join(sorted(tokens)).encode(errors="replace")).hexdigest()


def _is_named(template: Any) -> bool:
    return isinstance(template, dict) and isinstance(template.get("name"), str)


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is none: it is not what is served."""
    try:
        value = json.loads(file.read_bytes()) if file.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_kin(named: str, base: BaseModelFacts) -> bool:
    """Whether two names may well be of one model: `unsloth/llama-3-8b-bnb-4bit`, `llama3-8b`."""
    trained, *here = (_plain(name) for name in (named, base.name, base.id))
    return any(name and (name in trained or trained in name) for name in here)


def _plain(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-(bnb-\d+bit|unsloth|gptq|awq|\d+bit)", "", last))
