"""The words that a prompt stands in, and which tokens are special: kept beside the tokenizer, so that a model is asked as it was
trained. The template of a chat is kept as what stands around a prompt; it is a program, and generation runs none.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.text import tokenizer as bpe

TOKENIZER, WORDING = "tokenizer.json", "prompt_template.json"
PROBE, EDGE = "\x00", "\n\t"
EXAMPLE = "\t How many\n{apples}? "
MEND = "set QuestionAnswers.chat = False and write its words as QuestionAnswers.prompt"


@dataclass(frozen=True)
class PromptTemplate:
    """Template that prompts are written by, and the special tokens.

    Attributes:
        prompt: template over the fields of a prompt.
        special: token by role: "mask" (unless the model is causal), "end", "pad".
        before, after: of a chat, what stands around the prompt.
        strips: the chat leaves out white space at a prompt's ends.
        date: that a chat was written on; None = no chat.
    """

    prompt: str
    special: Mapping[str, str]
    before: str = ""
    after: str = ""
    strips: bool = False
    date: str | None = None

    def filled(self, fields: Mapping[str, str]) -> str:
        """Fill the template with these fields: what stands before the answer."""
        prompt = self.prompt.format(**fields)
        return self.before + (prompt.strip() if self.strips else prompt) + self.after

    def marked(self, encoding: bpe.Encoding) -> "PromptTemplate":
        """Mark control tokens in the template's own words, so that they alone are encoded as such: fields never are."""
        prompt, before, after = (encoding.marked(words) for words in (self.prompt, self.before, self.after))
        return replace(self, prompt=prompt, before=before, after=after)


def around(chat: Callable[[str], str]) -> tuple[str, str, bool]:
    """``before``, ``after`` and ``strips`` of a chat.

    >>> around(lambda prompt: f"<user> {prompt.strip()}<end>")
    ('<user> ', '<end>', True)

    Raises:
        DataError: the chat does not write a prompt once and as it is, or writes something else around it each time.
    """
    before, *others = chat(f"{EDGE}{PROBE}{EDGE[::-1]}").split(PROBE)
    if len(others) != 1:
        raise DataError(f"the chat template writes a prompt {len(others)} times, not once; {MEND}")
    after, strips = others[0], not before.endswith(EDGE)
    if not strips:
        before, after = before.removesuffix(EDGE), after.removeprefix(EDGE[::-1])
    if chat(EXAMPLE) != before + (EXAMPLE.strip() if strips else EXAMPLE) + after:
        raise DataError(f"the chat template changes what a prompt says, or writes another text each time; {MEND}")
    return before, after, strips


def write(folder: Path, encoding: bpe.Encoding, wording: PromptTemplate) -> None:
    """Write the tokenizer and the template that prompts are written by."""
    bpe.save(encoding.tokenizer, folder / TOKENIZER)
    write_json(folder / WORDING, {name: value for name, value in asdict(wording).items() if value is not None})


def read(folder: Path) -> tuple[bpe.Encoding, PromptTemplate]:
    """Read the tokenizer and the template that ``write`` wrote.

    Raises:
        DataError: a file is missing or malformed.
    """
    entries: Any = read_json(folder / WORDING, "prepare")
    try:
        wording = PromptTemplate(**entries)
        words = {name: getattr(wording, name) for name in ("prompt", "before", "after")}
        if not all(isinstance(word, str) for word in words.values()) or not isinstance(wording.special, dict):
            raise TypeError("texts and a map of special tokens were expected")
    except TypeError as error:
        raise DataError(f"{folder / WORDING} does not say how prompts are written ({error}); run dvc repro prepare") from None
    roles = [role for role in bpe.ROLES if role != "mask" or role in wording.special]
    return bpe.pretrained(bpe.load(folder / TOKENIZER), str(folder / TOKENIZER), wording.special, roles), wording
