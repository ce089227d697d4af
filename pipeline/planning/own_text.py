"""Examples of text of one's own, as a preset: what was seen of them, and the settings that follow, each by a stated rule."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from components.inference.answers import GSM8K
from pipeline.errors import ConfigError
from pipeline.planning.own_backbone import OwnBackbone
from pipeline.planning.preset_text import PresetText
from pipeline.planning.proposed_sizes import (
    CAUSAL,
    DIFFUSION,
    FROM_SCRATCH,
    LONGEST,
    Pace,
    buckets_for,
    draws_for,
    quantile,
    sequence_for,
    test_share,
    validation_share,
)  # fmt: skip
from pipeline.settings.effective import Source
from pipeline.text import survey
from pipeline.text import tokenizer as bpe
from pipeline.text.filled_rows import Pair
from pipeline.text.jsonl import QuestionAnswers
from pipeline.text.raw_files import raw_name
from pipeline.text.survey import Templates
from pipeline.text.tokenizer import Encoding

VOCABULARY = 4096
SHORT = 16  # tokens: half of the answers are no longer where whole answers are compared
WHOLE = {"whole": (r"(?s)^\s*(.*\S)", 0)}
CORPUS = "jsonl.QuestionAnswers"
BASES = {"scratch": "gsm8k", "next token": "gsm8k_smol", "masked diffusion": "gsm8k_llada"}
PACES = {"scratch": FROM_SCRATCH, "next token": CAUSAL, "masked diffusion": DIFFUSION}
TAILS = {"next token": 1, "masked diffusion": 4}  # last layers that joint trains, as these presets have
OVERRIDDEN = {
    "scratch": "BACKBONE_STEPS, WARMUP_STEPS, DIM, LAYERS, DEVICE = 'cuda'",
    "next token": "WARMUP_STEPS, WARMUP_LR, TAIL_LAYERS, DEVICE = 'cuda'",
    "masked diffusion": "WARMUP_STEPS, TAIL_LAYERS, ACCUMULATION, pretrained.model.trunk_bits",
}


@dataclass(frozen=True)
class OwnText:
    """Pairs of prompt and response that a preset is proposed for.

    Attributes:
        corpus: their corpus, its sequence as proposed.
        train, validation, test: tokens of each prompt, and of each answer with its end, by split.
        answers: of the test split.
        backbone: pretrained; None = a small one from scratch.
        seen: what was seen, in lines for a person.
    """

    corpus: QuestionAnswers
    train: Sequence[tuple[int, int]]
    validation: Sequence[tuple[int, int]]
    test: Sequence[tuple[int, int]]
    answers: Sequence[str]
    backbone: OwnBackbone | None
    seen: Sequence[str]

    @property
    def kind(self) -> str:
        """The kind of model: from scratch, or a pretrained one's objective."""
        return self.backbone.objective if self.backbone else "scratch"

    @property
    def batch(self) -> int:
        """Examples of a step that its rule proposes."""
        return PACES[self.kind].batch(self.corpus.sequence, len(self.train))

    def preset(self, batch: int, made_by: str) -> PresetText:
        """Write the preset, for steps of ``batch`` examples."""
        steps = PACES[self.kind].steps(batch, len(self.train))
        imports = ["pipeline.text.jsonl"]
        bindings = [*self._corpus(), *self._backbone(), *self._training(batch, steps), *self._answers()]
        imports += ["pipeline.models.pretrained"] * any(name.startswith("pretrained.") for name, _ in bindings)
        imports += ["components.inference.answers"] * any(name == "ANSWERS" and value is not None for name, value in bindings)
        return PresetText(self._header(made_by), imports, BASES[self.kind], bindings)

    def _header(self, made_by: str) -> list[str]:
        corpus = self.corpus
        counts = f"{len(self.train):,} to learn from, {len(self.validation):,} to validate on, {len(self.test):,} to test"
        model = f"{self.backbone.path!r} ({self.backbone.objective}; {self.backbone.sizes})" if self.backbone else "the built-in LM"
        headline = "nll of an answer's token" if corpus.causal else "nll of masked tokens, 30 % of each answer masked"
        over = BASES[self.kind]
        return [
            f"Examples of {Path(corpus.train).name!r}: {counts}. A prompt is {corpus.prompt!r}, what is learned "
            f"{corpus.response!r}, over {model}. Headline: {headline}.",
            f"Made by: python -m stages new {made_by}",
            f"Run: dvc exp run -S preset={made_by.split()[0]}. Result: not run yet. Learning rates are those of {over}, which was "
            f"measured on other text. Commonly overridden: {OVERRIDDEN[self.kind]}, {CORPUS}.sequence, .limits.",
        ]

    def _corpus(self) -> list[tuple[str, object]]:
        corpus = self.corpus
        names = ["train", "test", "download", "prompt", "response", "sequence", "limits", "validation", "long_prompts"]
        if self.backbone:
            names += ["tokenizer", "special", "chat", "causal", "padding"]
        return [(f"{CORPUS}.{name}", getattr(corpus, name)) for name in names]

    def _backbone(self) -> list[tuple[str, object]]:
        if (backbone := self.backbone) is None:
            return []
        lora = [] if importlib.util.find_spec("peft") else [("LORA_FIT", None)]  # a control that needs the extra lora
        return [
            ("pretrained.model.path", backbone.path), ("pretrained.model.objective", backbone.objective),
            ("TAIL_LAYERS", max(min(TAILS[self.kind], backbone.layers - 1), 1)),
            ("HEADS", backbone.heads), ("JOINT_TRAINS", ["refiner", backbone.blocks]), *lora,
            ("BUCKETS", buckets_for([sum(both) for both in self.train], self.corpus.sequence)),
        ]  # fmt: skip

    def _training(self, batch: int, steps: int) -> list[tuple[str, object]]:
        pace, sizes = PACES[self.kind], dict.fromkeys(("BATCH", "BACKBONE_BATCH", "EVALUATION_BATCH"), batch)
        validated = 2 * batch if self.backbone else max(2 * batch, min(256, 65_536 // self.corpus.sequence))
        sizes |= {"EXTRACT_BATCH": 2 * batch, "VALIDATION_BATCH": validated, "WARMUP_STEPS": steps}
        sizes |= {"JOINT_STEPS": pace.joint_steps(steps), "VALIDATE_EVERY": max(steps // 4, 1)}
        if self.backbone is None:
            sizes["BACKBONE_STEPS"] = steps
        if not self.corpus.causal:
            sizes["DRAWS"] = draws_for((steps + sizes["JOINT_STEPS"]) * batch / len(self.train))
        return list(sizes.items())

    def _answers(self) -> list[tuple[str, object]]:
        """How whole answers are judged: by their number behind ####, as wholes where they are short, or not at all."""
        pattern, _ = GSM8K["strict"]
        if sum(re.search(pattern, answer) is not None for answer in self.answers) >= 0.9 * len(self.answers):
            return [("ANSWERS", Source("@answers.Answers"))]
        if quantile([answer for _, answer in self.test], 0.5) > SHORT:
            return [("ANSWERS", None)]
        patterns: list[tuple[str, object]] = [("answers.Answers.patterns", WHOLE), ("answers.Answers.reference", "whole")]
        return [("ANSWERS", Source("@answers.Answers")), *patterns]


def own_text(train: Path, test: Path | None, templates: Templates | None, backbone: OwnBackbone | None) -> OwnText:
    """Look at examples of text, and propose how they are read.

    Args:
        train: training file.
        test: test file; None = a share of the training file.
        templates: of prompt and response; None = those of known fields.
        backbone: pretrained; None = a small one from scratch.

    Raises:
        ConfigError: no templates are given, and the fields are none that are known.
        DataError: a file is missing or malformed, or has too few examples.
    """
    tables = {path: survey.read_table(path) for path in (train, test) if path is not None}
    seen = [f"{path}: {survey.format_of(path)}, {len(t):,} examples; {survey.fields_in_words(t)}" for path, t in tables.items()]
    templates = templates or survey.known_templates(tables[train])
    if templates is None:
        raise ConfigError(
            f"{train}: the fields of a row are none that are known ({survey.names_of(tables[train][0][1])}); say which are prompt "
            "and response (a template names fields that are one word): --prompt '{a}' --response '{b}'"
        )
    if backbone and backbone.chat:
        templates = replace(templates, prompt=templates.prompt.rstrip("\n"))
    reserved = bpe.SPECIAL if backbone is None else tuple(backbone.special.values())
    pace = PACES[backbone.objective if backbone else "scratch"]
    pairs = survey.pairs_of(tables[train], templates, reserved)
    tests = survey.pairs_of(tables[test], templates, reserved) if test else None
    corpus = _corpus(train, test, templates, backbone, pairs[: pace.examples], pace, (len(pairs), len(tests or ())))
    chosen = f"prompt {templates.prompt!r}, response {templates.response!r}, by {templates.origin}"
    seen += [f"templates: {chosen}{'; in the chat template of the model' if corpus.chat else ''}", _repeats(pairs, tests)]
    return _measured(corpus, pairs[: pace.examples], None if tests is None else tests[: pace.tests], backbone, seen)


def _corpus(
    train: Path, test: Path | None, templates: Templates, backbone: OwnBackbone | None, pairs: Sequence[Pair], pace: Pace,
    counts: tuple[int, int],
) -> QuestionAnswers:  # fmt: skip
    """The corpus, with shares that leave examples in every split, and limits where there are more than a proposal uses."""
    limits = {"train": pace.examples} if counts[0] > pace.examples else {}
    limits |= {"test": pace.tests} if test and counts[1] > pace.tests else {}
    corpus = QuestionAnswers(
        raw_name(train), raw_name(test) if test else 0.5, f"(no command is known that makes {train.name!r})", VOCABULARY, LONGEST,
        limits or None, prompt=templates.prompt, response=templates.response,
    )  # fmt: skip
    if backbone is not None:
        corpus = replace(
            corpus, tokenizer=backbone.path, special=dict(backbone.special), chat=backbone.chat, causal=backbone.causal,
            padding="none" if backbone.causal else "end",
        )  # fmt: skip
    prompts = [pair.prompt for pair in pairs]
    if not test:
        corpus = replace(corpus, test=test_share(prompts, lambda prompt, share: replace(corpus, test=share).is_test(prompt)))
    left = [prompt for prompt in prompts if not corpus.is_test(prompt)]
    return replace(
        corpus, validation=validation_share(left, lambda prompt, share: replace(corpus, validation=share).is_validation(prompt))
    )


def _repeats(pairs: Sequence[Pair], tests: Sequence[Pair] | None) -> str:
    again = survey.repeats(pairs)
    words = f"repeated: {again.same:,} examples stand there before, {again.other_response:,} prompts with another response"
    if tests is None:
        return f"{words}; a prompt is in one split alone, however often it stands there"
    shared = survey.shared_prompts(pairs, tests)
    mend = "; what they measure is memory: take them out of one of the files" if shared else ""
    return f"{words}; {shared:,} of {len(tests):,} test prompts are in the training file too{mend}"


def _measured(
    corpus: QuestionAnswers, pairs: Sequence[Pair], tests: Sequence[Pair] | None, backbone: OwnBackbone | None, seen: Sequence[str]
) -> OwnText:
    """Count tokens, and choose the sequence."""
    rest = [pair for pair in pairs if not corpus.is_test(pair.prompt)]
    parts = {
        "train": [pair for pair in rest if not corpus.is_validation(pair.prompt)],
        "validation": [pair for pair in rest if corpus.is_validation(pair.prompt)],
        "test": [pair for pair in pairs if corpus.is_test(pair.prompt)] if tests is None else tests,
    }
    encoding = corpus.pretrained_encoding() if backbone else _trained(parts["train"])
    lengths = {name: corpus.lengths(part, encoding) for name, part in parts.items()}
    totals = [prompt + answer for both in lengths.values() for prompt, answer in both]
    sequence = sequence_for([sum(both) for both in lengths["train"]], (backbone and backbone.longest) or LONGEST)
    cut = sum(total > sequence for total in totals)
    full = sum(prompt >= sequence for both in lengths.values() for prompt, _ in both)
    whose = f"of {backbone.path}" if backbone else f"of {encoding.size:,} byte pairs, trained on them"
    sizes = [len(f"{pair.prompt}{pair.response}".encode()) for part in parts.values() for pair in part]
    lines = [
        f"lengths, prompt and answer: {_spread(sizes)} bytes; {_spread(totals)} tokens ({whose})",
        f"sequence {sequence}: what 99 % of the training examples fit, rounded up to 16, {LONGEST:,} at most; {cut - full:,} of "
        f"{len(totals):,} answers are cut, {full:,} prompts leave no room and are dropped",
        f"splits: {', '.join(f'{name} {len(part):,}' for name, part in parts.items())}, by a hash of the prompt",
    ]
    corpus = replace(corpus, sequence=sequence, long_prompts="drop" if full else "refuse")
    answers = [pair.response for pair in parts["test"]]
    return OwnText(corpus, lengths["train"], lengths["validation"], lengths["test"], answers, backbone, [*seen, *lines])


def _trained(pairs: Sequence[Pair]) -> Encoding:
    return bpe.trained((text for pair in pairs for text in (pair.prompt, pair.response)), VOCABULARY)


def _spread(sizes: Sequence[int]) -> str:
    return f"{quantile(sizes, 0.5):,} (half), {quantile(sizes, 0.99):,} (99 %), {max(sizes):,} at most"
