"""Control tokens told from text that spells them: a tokenizer whose control tokens are written as marks, and as nothing else.

Marks are new in every process and never leave it, so that no text of a user can hold one. Whatever splits, strips or merges text
stays as the tokenizer's author has it.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any

FIRST, LAST = "\ufdd0", "\ufdd1"  # Unicode gives them no character, ever
SECRET = secrets.token_hex(8)


def mark(token_id: int) -> str:
    """Write the mark of a control token."""
    return f"{FIRST}{SECRET}.{token_id}{LAST}"


def marked(template: str, control: Mapping[str, int]) -> str:
    """Write the control tokens that a template spells as marks; of two that begin together, the longer one."""
    if not control:
        return template
    spelled = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
    return re.sub(spelled, lambda match: mark(control[match[0]]), template)


def with_marks(tokenizer: Mapping[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    """Rewrite a tokenizer's JSON so that marks, and no spelling, give its control tokens; it neither cuts nor pads.

    Args:
        tokenizer: content of a ``tokenizer.json``.
        control: id by control token.
    """
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = {entry["content"]: entry for entry in tokenizer["added_tokens"]}
    added |= {token: how | added.get(token, {}) | {"id": number, "content": token} for token, number in control.items()}
    entries = [
        entry | {"content": mark(entry["id"]), "normalized": False, "single_word": False} if token in control else entry
        for token, entry in added.items()
    ]
    model = _respelled(tokenizer["model"], control)
    return {**tokenizer, "added_tokens": entries, "model": model, "truncation": None, "padding": None}


def _respelled(model: Mapping[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    """The model's own vocabulary with marks in place of control tokens, and without merges that would give or take one."""
    names = {token: mark(number) for token, number in control.items()}
    changed = dict(model)
    if isinstance(vocab := model["vocab"], dict):
        changed["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:
        changed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        changed["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    return changed
