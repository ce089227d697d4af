"""Answers to prompts: one call, or pass by pass. The same sampler as in evaluation, over a trained or an exported model.

>>> generator = Generator("exported")  # doctest: +SKIP
>>> generator("12../..../4.../...1").text  # doctest: +SKIP
'1234/3412/4123/2341'
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.approximate_prefix import Prefix
from components.inference.halting import Rule
from components.inference.left_to_right import left_to_right
from components.inference.sampling import Pass, Sampler
from components.model import Model
from components.ranges import Depth, Passes, PositiveInt
from components.refined_lm import RefinedLM
from pipeline.errors import ConfigError
from pipeline.files import json_bytes
from pipeline.inference.exported import load_inference_model
from pipeline.inference.predictor import predictor, reader
from pipeline.machine.runtime import Runtime
from pipeline.text.prompts import Prompt

_ALONE = threading.RLock()  # a pass turns switches of the process, and patches a pretrained model: one thread at a time
GREEDY = Sampler()  # one token a pass, the most certain first


def check_together(
    sampler: Sampler = GREEDY,
    halt: Rule | None = None,
    prefix: Prefix | None = None,
    refined_passes: int | None = None,
    *,
    causal: bool = False,
    remembers: bool = False,
) -> None:
    """Check that the settings of a ``Generator`` go together.

    Args:
        sampler, halt, prefix, refined_passes: as the generator's.
        causal: the model that answers writes token after token.
        remembers: the model that answers hands its carry on from pass to pass.

    Raises:
        ConfigError: they do not.
    """
    try:
        sampler.check()
    except ValueError as error:
        raise ConfigError(f"sampling.Sampler: {error}") from None
    if prefix is not None and (halt is not None or sampler.guidance):
        raise ConfigError("generation.Generator.prefix goes with neither halt nor sampling.Sampler.guidance; set one to None or 0")
    if remembers and (sampler.guidance or halt is not None or prefix is not None or refined_passes):
        raise ConfigError(
            "a model with memory hands the carry of a whole pass to the next: it goes with none of sampling.Sampler.guidance, "
            "generation.Generator.halt, prefix and refined_passes; set them to 0 and None"
        )
    drawn_alone = replace(sampler, temperature=0.0, seed=0) == GREEDY and halt is None and prefix is None
    if causal and not drawn_alone:
        raise ConfigError(
            "a causal model writes token after token: of sampling.Sampler it takes temperature and seed alone, and neither "
            "halt nor prefix"
        )


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt; before the last pass, what it has said so far.

    Attributes:
        text: the answer; what is undecided shows as "_", in puzzles as ".".
        tokens: its tokens one by one, without the end.
        confidence: probability of each of them when it was committed; 0 where nothing is decided.
        evaluations: runs of the model that it took.
    """

    text: str
    tokens: list[str]
    confidence: list[float]
    evaluations: int


class Generator:
    """A model that answers prompts: ``generator("prompt").text``, a list of answers to a list of prompts.

    Args:
        model: folder of a trained model (``outputs/joint``), of a backbone, or of an exported model.
        backbone: folder of the backbone that it was trained over; an exported model brings its own.
        prepared: folder of the prepared data, for the tokenizer; an exported model brings its own.
        sampler: how masked tokens are filled.
        length: tokens of an answer at most; None = what the sequence has room for.
        refined_passes: passes of each block that the refined model makes, the last ones, after the backbone alone; None = all.
        halt: rule by which a sequence leaves the recursion within a pass; None = after all steps.
        prefix: what is kept of the tokens before a block while it is decoded, an approximation
            (``components.inference.approximate_prefix``); None = nothing, every pass reads everything.
        recursion_steps: supervised steps of a model that takes several; None = as many as in training.
        batch_size: prompts answered together.
        remote_code: run code that comes with an exported model's backbone. Read it first.
        runtime: where it computes, in force during each call and no longer; None = on the CPU, with the threads that torch has.

    Raises:
        ConfigError: settings that do not fit together.
        DataError: a folder is missing, damaged, or does not belong to the others.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backbone: str = "data/backbone",
        prepared: str = "data/prepared",
        sampler: Sampler = GREEDY,
        length: PositiveInt | None = None,
        refined_passes: Passes | None = None,
        halt: Rule | None = None,
        prefix: Prefix | None = None,
        recursion_steps: Depth | None = None,
        batch_size: PositiveInt = 8,
        remote_code: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        check_together(sampler, halt, prefix, refined_passes)
        limits = (("length", length, 1), ("refined_passes", refined_passes, 0), ("batch_size", batch_size, 1))
        for name, value, least in (*limits, ("recursion_steps", recursion_steps, 1)):
            if value is not None and value < least:
                raise ConfigError(f"generation.Generator.{name} must be at least {least}, got {value}")
        self.sampler, self.length, self.refined_passes = sampler, length, refined_passes
        self.halt, self.prefix, self.batch_size = halt, prefix, batch_size
        self.runtime = runtime or Runtime(threads=torch.get_num_threads())
        loaded = load_inference_model(Path(model), Path(backbone), Path(prepared), remote_code=remote_code)
        loaded.model.set_steps(recursion_steps)
        self.model, self.vocabulary = loaded.model.to(self.runtime.device).eval(), loaded.backbone.vocabulary
        self.prompts = loaded.prompts
        check_together(sampler, halt, prefix, refined_passes, causal=self.vocabulary.causal, remembers=self.model.remembers)

    @overload
    def __call__(self, prompt: Prompt) -> Answer: ...  # type: ignore[overload-overlap]  # a str is no sequence of prompts
    @overload
    def __call__(self, prompt: Sequence[Prompt]) -> list[Answer]: ...
    def __call__(self, prompt: Prompt | Sequence[Prompt]) -> Answer | list[Answer]:
        if isinstance(prompt, str | Mapping):
            return self([prompt])[0]
        return [answer for answers in self.batches(prompt) for answer in answers]

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """Answers to the prompts, ``batch_size`` at a time, in their order.

        Raises:
            DataError: a prompt is none; before anything is answered.
        """
        canvases = [self.prompts.canvas(prompt, self.length) for prompt in prompts]
        for first in range(0, len(canvases), self.batch_size):
            part = canvases[first : first + self.batch_size]
            with _ALONE, self.runtime.in_force():
                answers = self._answers(deque(self._passes(part), maxlen=1).pop(), part)
            yield answers

    def stream(self, prompt: Prompt) -> Iterator[Answer]:
        """The answer before the first pass and after each; the last one is whole."""
        canvas = self.prompts.canvas(prompt, self.length)
        passes = self._passes([canvas])
        while True:
            with _ALONE, self.runtime.in_force():  # and not while the caller has the answer
                made = next(passes, None)
            if made is None:
                return
            yield self._answers(made, [canvas])[0]

    def _passes(self, canvases: list[list[int]]) -> Iterator[Pass]:
        """What the sampler leaves before the first pass and after each."""
        batch = self._batch(canvases).to(self.runtime.device)
        yield Pass(batch.tokens, (~batch.masked).float(), batch.masked & False, batch.tokens[:, 0] * 0)
        uid = torch.tensor([_identity(canvas) for canvas in canvases], device=batch.tokens.device)
        given: dict[str, Any] = {"end_id": self.prompts.end_id, "uid": uid, "known": self.prompts.known}
        model, finish = self._models()
        if self.vocabulary.causal:  # each token is a pass of its own, and the last of its block
            read = reader(model if finish is None else finish, batch, self.vocabulary, self.runtime)
            yield from left_to_right(read, batch.tokens, self.vocabulary.mask_id, self.sampler, **given)
            return
        halt, refined = (self.halt, finish or model) if self.halt else (None, None)
        ask = partial(
            predictor, batch=batch, vocabulary=self.vocabulary, runtime=self.runtime, prefix=self.prefix, blocks=self.sampler.blocks
        )  # fmt: skip
        predict = ask(model, halt=halt if model is refined else None)
        last = None if finish is None else ask(finish, halt=halt)
        yield from self.sampler.passes(
            predict, batch.tokens, self.vocabulary.mask_id, finish=last, finishing=self.refined_passes or 1, **given
        )

    def _models(self) -> tuple[Model, Model | None]:
        """What predicts in every pass, or until the last ones, and what predicts in those."""
        if self.refined_passes is None or not isinstance(self.model, RefinedLM):
            return self.model, None
        return self.model.backbone, self.model if self.refined_passes else None

    def _batch(self, canvases: list[list[int]]) -> Batch:
        lengths = torch.tensor([len(canvas) for canvas in canvases])
        tokens = torch.full((len(canvases), int(lengths.max())), self.vocabulary.pad_id)
        for row, canvas in enumerate(canvases):
            tokens[row, : len(canvas)] = torch.tensor(canvas)
        valid = torch.arange(tokens.shape[1]) < lengths[:, None]
        masked = valid & (tokens == self.vocabulary.mask_id)
        return Batch(tokens, tokens, masked, torch.zeros(tokens.shape), None if bool(valid.all()) else valid)

    def _answers(self, made: Pass, canvases: list[list[int]]) -> list[Answer]:
        answers = []
        rows: tuple[Tensor, ...] = (made.tokens, made.probability, made.evaluations)
        for canvas, ids, probability, evaluations in zip(canvases, *(tensor.tolist() for tensor in rows), strict=True):
            places = self.prompts.answer_places(canvas, ids)
            tokens, confidence = [self.prompts.token(ids[i]) for i in places], [probability[i] for i in places]
            answers.append(Answer(self.prompts.text(ids, places), tokens, confidence, evaluations))
        return answers


def _identity(canvas: list[int]) -> int:
    """Key of a prompt's noise: of what it says, not of where it stands."""
    return int.from_bytes(hashlib.sha256(json_bytes(canvas)).digest()[:8], "big", signed=True)
