"""A model of this project under lm-evaluation-harness, as ``--model slotloop``; the only door to ``lm_eval``.

python -m pipeline.evaluation.harness run --model slotloop --model_args model=outputs/joint,passes=64 --tasks gsm8k --limit 100

Requests become prepared examples, and what evaluate does with those is done with them: prompt and answer are encoded one by one, as
they were when the model was trained, in the chat that it was trained in. A long prompt loses its beginning, and a line says so. A
request's masks depend on its text alone.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.inference.answers import Answers
from components.model import Model
from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.evaluation import answer_likelihood, answering
from pipeline.evaluation.compared import Compared
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.progress import Progress
from pipeline.text import prompt_template
from pipeline.text.chat_history import in_chat, marked, rendered

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one setting; the first that is there


class Requests:
    """Answers the harness's requests; with its ``LM`` beside it, a model of the harness (``registered``).

    Args:
        model: folder of a trained model, or "frozen" for the backbone alone.
        backbone: folder of the backbone.
        prepared: folder that prepare wrote: its tokenizer and sequence length.
        passes: through the model for an answer.
        blocks: decoded left to right; they divide the passes.
        samples: masks for a likelihood.
        max_gen_toks: tokens of an answer, if the task does not say (as ``LENGTHS``).
        seed: of the masks.
        batch_size: requests that run together.
        device, precision, threads: see ``pipeline.machine.runtime.Runtime``.

    Raises:
        ConfigError: a setting is out of range.
        DataError: a folder is missing, or they do not belong together.
    """

    def __init__(
        self,
        model: str = "outputs/joint",
        backbone: str = "data/backbone",
        prepared: str = "data/prepared",
        passes: int = 64,
        blocks: int = 1,
        samples: int = 32,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str = "cpu",
        precision: Any = "fp32",
        threads: int = 2,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or samples < 2 or max_gen_toks < 1:
            raise ConfigError(
                "batch_size and max_gen_toks must be positive numbers and samples at least 2, "
                f"got {batch_size}, {max_gen_toks} and {samples}"
            )
        try:
            self.answers = Answers(items=1, passes=passes, blocks=blocks)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.runtime = Runtime(device, precision, threads)
        data, base = Prepared(prepared), Backbone(backbone)
        base.check(data)
        encoding, self.template = prompt_template.read(data.folder)
        self.folder = data.folder
        self.vocabulary, self.tokenizer, self.end = data.vocabulary, encoding.tokenizer, encoding.id("end")
        self.encoding, self.known = encoding, encoding.known
        loaded: Model = base.model() if model == "frozen" else load_model(model, base, Path(model).name)
        self.model = loaded.to(self.runtime.device).eval()
        self.samples, self.seed, self.size, self.longest = samples, seed, int(batch_size), max_gen_toks

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the estimated lower bound on log p in nats, and whether decoding gives just that."""
        if not requests:
            return []
        split = self._split([(context, self._ids(text)) for context, text in (request.args for request in requests)])
        order, back = _by_length(split)
        with self.runtime.in_force(), Progress("slotloop", len(split), "answer") as bar:
            alone = Compared({"": self.model}, self.runtime)
            nll = answer_likelihood.sampled(alone, split.take(order), self.vocabulary, self.samples, self.size, self.seed, bar)
        bounds = -nll[""][..., -1].mean(1)[back]
        greedy = ((self._decoded(split) == split.tokens) | ~split.response).all(1)
        return list(zip(bounds.tolist(), greedy.tolist(), strict=True))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, settings): the answer up to its end, or to the first of ``until``; sampling settings are ignored."""
        if not requests:
            return []
        rooms = [length_of(request.args[1], self.longest) for request in requests]
        split = self._split([(request.args[0], room) for request, room in zip(requests, rooms, strict=True)])
        _tell_short(split, rooms)
        texts = []
        for row, response, request in zip(self._decoded(split), split.response, requests, strict=True):
            ids = row[response].tolist()
            text = self.tokenizer.decode(ids[: ids.index(self.end)] if self.end in ids else ids)
            until = request.args[1].get("until") or []
            texts.append(cut(text, [until] if isinstance(until, str) else until))
        return texts

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: texts without a prompt, longer than a sequence, are none of what these models were trained on."""
        raise ConfigError(
            "slotloop has no loglikelihood_rolling: these models tell how likely an answer to a prompt is, not a text by itself; "
            "choose tasks of generation or multiple choice"
        )

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a chat of one question as prompts were written in training; an answer that was begun stands behind.

        Raises:
            ConfigError: the data was prepared without a template, or the chat does not fit it.
        """
        return rendered(self.template, chat_history, str(self.folder))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that ``apply_chat_template`` writes by, for the harness's record; "" where it is not used."""
        return self.template.before + self.template.prompt + self.template.after if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """A name that changes with the tokenizer and the template, by which the harness keeps requests."""
        files = (self.folder / name for name in (prompt_template.TOKENIZER, prompt_template.WORDING))
        return "slotloop-" + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]

    def _fitted(self, prompt: list[int], room: int) -> list[int]:
        """As much of a prompt as there is room for: its end, behind what begins its chat."""
        if len(prompt) <= room:
            return prompt
        head = self.encoding.prompt(self.encoding.marked(self.template.before))
        return head + prompt[len(head) - room :] if len(head) < room else prompt[-room:]

    def _ids(self, text: str) -> list[int]:
        return self.encoding.encode(text)

    def _split(self, prompts: Sequence[tuple[str, list[int] | int]]) -> Split:
        """Examples of prompts, each with its answer, or with room for one of at most so many tokens."""
        n, sequence = len(prompts), self.vocabulary.sequence
        tokens = torch.full((n, sequence), self.vocabulary.pad_id, dtype=torch.int32)
        response, valid = (torch.zeros(n, sequence, dtype=torch.bool) for _ in range(2))
        uid = torch.zeros(n, dtype=torch.int64)
        long = []
        for row, (context, answer) in enumerate(prompts):
            prompt = self.encoding.prompt(marked(self.template, self.encoding, in_chat(self.template, context))) or [self.end]
            if isinstance(answer, int):
                answer = [self.end] * min(answer, max(sequence - len(prompt), sequence // 2))
            if len(answer) + len(self.encoding.start) >= sequence:
                raise DataError(f"a continuation of {len(answer)} tokens does not fit a sequence of {sequence}: {context[-60:]!r}")
            if len(prompt) + len(answer) > sequence:
                long.append(len(prompt))
            ids = self._fitted(prompt, sequence - len(answer)) + answer
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            response[row, len(ids) - len(answer) : len(ids)] = True
            valid[row, : len(ids)] = True
            uid[row] = int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:7], "big")
        if long:
            _tell(
                f"{len(long)} of {n} prompts do not fit the sequence of {sequence} and lose their beginnings; the longest has "
                f"{max(long)} tokens"
            )
        return Split(tokens=tokens, response=response, group=torch.arange(n), valid=valid, uid=uid)

    def _decoded(self, split: Split) -> Tensor:
        order, back = _by_length(split)
        with self.runtime.in_force(), Progress("slotloop", len(split), "answer") as bar:
            tokens, _ = answering.generated(
                self.model, split.take(order), self.vocabulary, self.answers, self.size, self.runtime, "harness", bar,
                self.known, self.end,
            )  # fmt: skip
        return tokens[back]


def length_of(settings: Mapping[str, Any], default: int) -> int:
    """Read how many tokens an answer may have, by whichever name a task gives it.

    >>> length_of({"max_new_tokens": 512, "max_tokens": 64}, 256), length_of({"until": []}, 256)
    (512, 256)

    Raises:
        ConfigError: it is no positive number.
    """
    name = next((name for name in LENGTHS if settings.get(name) is not None), None)
    if name is None:
        return default
    if not str(settings[name]).isdecimal() or int(settings[name]) < 1:
        raise ConfigError(f"a task's {name} must be a positive number of tokens, got {settings[name]!r}")
    return int(settings[name])


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of any of these.

    >>> cut("18\\n\\nQuestion: and?", ["Question:", "\\n\\n"])
    '18'
    """
    return text[: min((text.index(stop) for stop in until if stop and stop in text), default=len(text))]


@cache
def registered() -> Any:
    """The model as the harness knows it, under the name ``slotloop``.

    Raises:
        ConfigError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise ConfigError("lm-evaluation-harness is not installed: pip install 'slotloop[eval]'") from None
    return register_model("slotloop")(type("SlotloopLM", (Requests, LM), {}))


def main() -> int:
    """The harness's own command line, with this model in it; returns the exit status."""
    try:
        registered()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _tell_short(split: Split, rooms: Sequence[int]) -> None:
    short = [(given, room) for given, room in zip(split.response.sum(1).tolist(), rooms, strict=True) if given < room]
    if short:
        given, room = min(short)
        _tell(f"{len(short)} of {len(rooms)} answers have room for fewer tokens than they may have; the least is {given} of {room}")


def _tell(line: str) -> None:
    print(f"slotloop: {line}", file=sys.stderr)


def _by_length(split: Split) -> tuple[Tensor, Tensor]:
    """Shortest first, and back."""
    order = split.lengths().argsort(stable=True)
    return order, order.argsort()


if __name__ == "__main__":
    sys.exit(main())
