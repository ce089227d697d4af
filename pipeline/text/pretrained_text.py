"""What a pretrained model reads: its tokenizer, and the template that its chats are written in. None of its code runs."""

from collections.abc import Callable
from pathlib import Path
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


def chat(path: str, revision: str | None) -> Callable[[str], str]:
    """Prompt -> the chat that asks it, up to where the answer begins, as the model's own template writes it.

    Raises:
        DataError: the model has no template, or it fails.
    """
    settings = read_json(hub.file(path, revision, SETTINGS), "prepare")
    template = settings.get("chat_template") or _template_file(path, revision)
    special = {role: _text(settings[role]) for role in ("bos_token", "eos_token", "pad_token") if settings.get(role)}
    writer = transformers().PreTrainedTokenizerFast(tokenizer_object=bpe.empty(), chat_template=template, **special)

    def framed(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        try:
            return writer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of its author: it may raise anything
            raise DataError(f"the chat template of {path} failed: {error}") from None

    return framed


def _template_file(path: str, revision: str | None) -> str:
    try:
        return hub.file(path, revision, TEMPLATE).read_text()
    except DataError:
        raise DataError(
            f"{path} has no chat template (neither in {SETTINGS} nor as {TEMPLATE}); write one as the prompt's template instead"
        ) from None


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])
