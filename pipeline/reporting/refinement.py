"""Examples whose refinement the page plays: chosen by a rule, each with what every step says, what it changed and how sure it is.

Everything comes from evaluate's trace: with the headline's masks where these leave some of an answer to be seen, else with all of
an answer to be filled in at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.corpora.prepared import Split
from pipeline.text.rendering import Right

SHOWN = {"mended": 5, "broken": 2, "unsolved": 2, "solved": 1}  # examples of each kind that are played, at most
MOST_TOKENS = 12_000  # that all steps of all examples show together, by which the page stays small
LONGEST = 400  # tokens of an answer that are shown
SHADES = 10  # of confidence
RULE = (
    "{hidden} is hidden, and filled in anew at every step. Of the {n} traced examples, in their order: the first "
    "{mended} that the frozen backbone gets wrong and {refined} right, the first {broken} the other way round, the first "
    "{unsolved} that both get wrong; one that both get right only if there is none of these. {by}"
)
BY_ANSWERS = "An example is right where its whole answer is."
OF_TOKENS = {
    "mended": "more right",
    "broken": "fewer right",
    "unsolved": "as many right",
}  # names of kinds where no answer is right
BY_TOKENS = "No answer is right as a whole here, so that right and wrong mean more and fewer right tokens than the other's."


@dataclass(frozen=True)
class Traced:
    """What is shown of a trace.

    Attributes:
        tokens: of the references.
        response: places of the answers.
        masked: places of them that models fill in.
        models: of each model, by example and step, ids and probabilities.
        ratio: share of an answer that is masked.
    """

    tokens: Sequence[Sequence[int]]
    response: Sequence[Sequence[bool]]
    masked: Sequence[Sequence[bool]]
    models: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
    ratio: float = 1.0

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Traced":
        """Take the traces with the headline's masks, or those with whole answers masked where there are no others."""
        whole = {"ratio": 1.0, "masked": trace["response"], "models": trace["models"]}
        part = trace.get("headline", whole)
        return cls(trace["tokens"], trace["response"], part["masked"], part["models"], part["ratio"])


@dataclass(frozen=True)
class Token:
    """A place of a sequence at one step.

    Attributes:
        text: that is shown.
        given: it is not to be filled in.
        right: it is the reference's.
        changed: it differs from the step before.
        shade: confidence in tenths, 0 to 9.
    """

    text: str
    given: bool = False
    right: bool = True
    changed: bool = False
    shade: int = SHADES - 1


@dataclass(frozen=True)
class Stage:
    """What a model says after one step: its title, its tokens, and the same in words."""

    title: str
    tokens: Sequence[Token]
    words: str


@dataclass(frozen=True)
class Example:
    """An example of one kind, with its question and reference as text, and one stage a step."""

    number: int
    kind: str
    question: str
    answer: str
    stages: Sequence[Stage]


@dataclass(frozen=True)
class Refinement:
    """What the page plays: examples, the rule by which they were chosen, and cells in a row of a grid (0 = text)."""

    examples: Sequence[Example]
    rule: str
    width: int


def refinement(trace: Mapping[str, Any], refined: str, right: Right, cell: Callable[[int], str] | None) -> Refinement:
    """Choose examples of a trace and say what the frozen backbone and each step of a refined model make of them.

    Args:
        trace: of the evaluation.
        refined: name of the refined model.
        right: tells which answers are right.
        cell: a token's mark in a square grid; None = text, whose tokens the trace spells (``pieces``).
    """
    traced = Traced.of(trace)
    scored = scores(traced, refined, right)
    by_answers = any(value == 1 for pair in scored for value in pair)
    ranks = [(int(a == 1), int(b == 1)) for a, b in scored] if by_answers else scored
    hidden = "The whole answer" if traced.ratio == 1.0 else f"{traced.ratio:.0%} of every answer"
    by = BY_ANSWERS if by_answers else BY_TOKENS
    rule = RULE.format(n=len(scored), refined=refined, by=by, hidden=hidden, **SHOWN)
    pieces = trace.get("pieces", {})
    spell = cell or (lambda token: str(pieces[str(token)]))
    examples: list[Example] = []
    room = MOST_TOKENS
    for kind, row in _chosen(ranks) if cell or pieces else ():
        label = kind if by_answers else OF_TOKENS[kind]
        example = example_of(traced, refined, row, label, spell, grid=cell is not None)
        room -= sum(len(stage.tokens) for stage in example.stages)
        if room >= 0 or not examples:
            examples.append(example)
    return Refinement(examples, rule, round(len(traced.tokens[0]) ** 0.5) if cell else 0)


def scores(traced: Traced, refined: str, right: Right) -> list[tuple[float, float]]:
    """Score the last step of the frozen backbone and of the refined model on each example: 1 = right, else half its right share."""
    target, masked = torch.tensor(traced.tokens), torch.tensor(traced.masked)
    split = Split(tokens=target, response=masked, group=torch.arange(len(target)))
    columns = []
    for name in ("frozen", refined):
        tokens = torch.tensor([steps[-1]["ids"] for steps in traced.models[name]])
        share = ((tokens == target) & masked).sum(1) / masked.sum(1).clamp(min=1)
        columns.append(torch.where(right(tokens, split), 1.0, share.double() / 2).tolist())
    return list(zip(*columns, strict=True))


def _chosen(ranks: Sequence[tuple[float, float]]) -> list[tuple[str, int]]:
    """Choose the first rows of every kind; those that both models solve only where there is no other."""
    kinds: dict[str, list[int]] = {kind: [] for kind in SHOWN}
    for row, (frozen, refined) in enumerate(ranks):
        same = "solved" if frozen == 1 else "unsolved"
        kinds["mended" if refined > frozen else "broken" if refined < frozen else same].append(row)
    if any(rows for kind, rows in kinds.items() if kind != "solved"):
        kinds["solved"] = []
    return [(kind, row) for kind, rows in kinds.items() for row in rows[: SHOWN[kind]]]


def example_of(traced: Traced, refined: str, row: int, kind: str, spell: Callable[[int], str], *, grid: bool) -> Example:
    """Say of one traced example what the frozen backbone and each step of a refined model make of it.

    Args:
        traced: what the evaluation traced.
        refined: name of the refined model.
        row: of the example.
        kind: that it is called.
        spell: writes a token.
        grid: show all places, not those of the answer alone.
    """
    target, response = traced.tokens[row], traced.response[row]
    places = list(range(len(target))) if grid else _answer_places(target, response)
    states = [("frozen backbone", traced.models["frozen"][row][-1])]
    states += [(f"step {number}", state) for number, state in enumerate(traced.models[refined][row], 1)]
    stages: list[Stage] = []
    before: Sequence[int] | None = None
    for title, state in states:
        tokens = [_token(i, state, target, traced.masked[row], before, spell) for i in places]
        stages.append(Stage(title, tokens, _words(tokens, [state["probability"][i] for i in places], first=before is None)))
        before = state["ids"]
    question = "" if grid else "".join(spell(token) for token, hidden in zip(target, response, strict=True) if not hidden)
    answer = "" if grid else "".join(spell(target[i]) for i in places)
    return Example(row + 1, kind, question.strip(), answer, stages)


def _answer_places(target: Sequence[int], response: Sequence[bool]) -> list[int]:
    """List the places of an answer; of what is repeated at its very end, such as its end token, the first alone."""
    places = [i for i, hidden in enumerate(response) if hidden]
    while len(places) > 1 and target[places[-1]] == target[places[-2]]:
        places.pop()
    return places[:LONGEST]


def _token(
    place: int,
    state: Mapping[str, Any],
    target: Sequence[int],
    masked: Sequence[bool],
    before: Sequence[int] | None,
    spell: Callable[[int], str],
) -> Token:
    if not masked[place]:
        return Token(spell(target[place]), given=True)
    token = state["ids"][place]
    changed = before is not None and before[place] != token
    shade = min(SHADES - 1, int(state["probability"][place] * SHADES))
    return Token(spell(token).replace("\n", "↵\n"), right=token == target[place], changed=changed, shade=shade)


def _words(tokens: Sequence[Token], probabilities: Sequence[float], *, first: bool) -> str:
    filled = [(token, p) for token, p in zip(tokens, probabilities, strict=True) if not token.given]
    right = f"{sum(token.right for token, _ in filled)} of {len(filled)} right"
    sure = f"mean confidence {sum(p for _, p in filled) / max(1, len(filled)):.2f}"
    return f"{right}, {sure}" if first else f"{sum(token.changed for token, _ in filled)} changed, {right}, {sure}"
