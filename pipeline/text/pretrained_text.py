"""What a pretrained model reads: its tokenizer, and the template that its chats are written in. None of its code runs."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from string import ascii_letters
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.models import hub
from pipeline.models.families import FAMILIES, family
from pipeline.models.transformers import transformers
from pipeline.text import tokenizer as bpe

FILE, OWN_FILES = "tokenizer.json", ("vocab.json", "merges.txt")
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
CLOCK = """{%- macro strftime_now(format) -%}
{%- set now = namespace(text=format) -%}
{%- for directive, value in clock -%}{%- set now.text = now.text | replace(directive, value) -%}{%- endfor -%}
{{- now.text -}}
{%- endmacro %}
"""  # in place of the function of that name, which reads the machine's clock; the newline goes with the block


def tokenizer(path: str, revision: str | None) -> Any:
    """A ``tokenizers.Tokenizer`` from tokenizer.json; from the family's own files where none is published (Dream).

    Raises:
        DataError: its files cannot be had.
    """
    if not (Path(path) / FILE).is_file():
        name = family(read_json(hub.file(path, revision, "config.json"), "prepare"))
        if name and (native := FAMILIES[name].tokenizer):
            return _native(native, path, revision)
    return bpe.load(hub.file(path, revision, FILE))


def _native(name: str, path: str, revision: str | None) -> Any:
    files = [hub.file(path, revision, file) for file in (*OWN_FILES, SETTINGS)]
    return getattr(transformers(), name).from_pretrained(str(files[0].parent)).backend_tokenizer


def chat(path: str, revision: str | None, today: date) -> Callable[[str], str]:
    """Prompt -> the chat that asks it, up to where the answer begins, as the model's own template writes it.

    Args:
        path: folder of the model, or its name on the hub.
        revision: on the hub.
        today: what a template is told that asks for the time: the midnight that this day begins with, in UTC.

    Raises:
        DataError: the model has no template, or it fails.
    """
    settings = read_json(hub.file(path, revision, SETTINGS), "prepare")
    template = settings.get("chat_template") or _template_file(path, revision)
    special = {role: _text(settings[role]) for role in ("bos_token", "eos_token", "pad_token") if settings.get(role)}
    clock, template = _clock(today), CLOCK + template if "strftime_now" in template else template
    writer = transformers().PreTrainedTokenizerFast(tokenizer_object=bpe.empty(), chat_template=template, **special)

    def framed(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        try:
            return writer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, clock=clock)
        except Exception as error:  # a template is a program of its author: it may raise anything
            raise DataError(f"the chat template of {path} failed: {error}") from None

    return framed


def _clock(today: date) -> list[tuple[str, str]]:
    """What each directive of ``strftime`` stands for at the midnight that a day begins with, in the order of their replacement."""
    midnight = datetime.combine(today, time(), UTC)
    directives = [f"%{flag}{letter}" for flag in "-_0^#" for letter in ascii_letters] + [f"%{letter}" for letter in ascii_letters]
    values = {directive: midnight.strftime(directive) for directive in directives}
    values["%s"] = str(int(midnight.timestamp()))  # by itself it would be of the machine's time zone
    return [("%%", "\0"), *values.items(), ("\0", "%")]


def _template_file(path: str, revision: str | None) -> str:
    try:
        return hub.file(path, revision, TEMPLATE).read_text()
    except DataError:
        raise DataError(
            f"{path} has no chat template (neither in {SETTINGS} nor as {TEMPLATE}); write one as the prompt's template instead"
        ) from None


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])
