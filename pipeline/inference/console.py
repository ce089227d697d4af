"""Prompts from the command line, a file or a pipe; answers to the terminal, or as one JSON object a line."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.files import absence
from pipeline.inference.generation import Answer, Generator
from pipeline.inference.terminal import Screen
from pipeline.progress import Progress
from pipeline.text.prompts import Prompt
from pipeline.text.tables import json_object, text_lines

PIPE = "-"


def answer(make: Callable[[], Generator], prompt: str, file: str, confidence: bool) -> None:
    """Print the answer to one prompt, decoded before one's eyes on a terminal; or to many, as one JSON object a line.

    Args:
        make: the generator; not called before the prompts are read.
        prompt: "" = many, from ``file``.
        file: one prompt a line, plain text or a JSON object; "-" or "" = standard input.
        confidence: also print the probability of every token.

    Raises:
        ConfigError: no prompt, or two ways to give them.
        DataError: a prompt is none.
    """
    if prompt and file:
        raise ConfigError("give --prompt or --prompts, not both")
    if prompt:
        _one(make(), prompt, confidence)
        return
    if not file and sys.stdin.isatty():
        raise ConfigError('give --prompt "...", or --prompts FILE with one prompt a line ("-": standard input)')
    prompts = read(file or PIPE)
    generator = make()
    with Progress("generate", len(prompts), "prompt", stream=sys.stderr) as bar:
        done = 0
        for answers in generator.batches(prompts):
            for question, answer in zip(prompts[done : done + len(answers)], answers, strict=True):
                print(json.dumps(_line(question, answer, confidence), ensure_ascii=False), flush=True)
            done += len(answers)
            bar.advance(len(answers))


def read(file: str) -> list[Prompt]:
    """Prompts, one a line: plain text, or a JSON object of the template's fields; "-" = standard input.

    Raises:
        DataError: the file is missing, is not text, holds no prompt, or a line that begins like an object is none.
    """
    name = "standard input" if file == PIPE else file
    if file != PIPE and not Path(file).is_file() and not Path(file).is_fifo():
        raise DataError(f"{name} cannot be read: it {absence(Path(file))}")
    with Path(file).open("rb") if file != PIPE else contextlib.nullcontext(_standard_input()) as stream:
        prompts = [_prompt(line.rstrip("\r\n"), origin) for origin, line in text_lines(stream, name)]
    if not prompts:
        raise DataError(f"{name} holds no prompts; expected one a line")
    return prompts


def _standard_input() -> io.BufferedReader:
    """The bytes of the standard input; of one that a program has replaced by text, that text's."""
    buffer = getattr(sys.stdin, "buffer", None)
    return buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(io.BytesIO(sys.stdin.read().encode()))


def _prompt(line: str, origin: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return line
    return json_object(line, origin)


def _one(generator: Generator, prompt: str, confidence: bool) -> None:
    screen = Screen(sys.stdout)
    answer = None
    for answer in generator.stream(prompt):
        screen.draw(generator.prompts.picture(answer.text))
    screen.draw()
    assert answer is not None
    print(answer.text)
    for token, probability in zip(answer.tokens, answer.confidence, strict=True) if confidence else ():
        print(f"{probability:.4f} {token!r}")


def _line(prompt: Prompt, answer: Answer, confidence: bool) -> dict[str, object]:
    line: dict[str, object] = {"prompt": prompt, "text": answer.text, "evaluations": answer.evaluations}
    if not confidence:
        return line
    return {**line, "tokens": answer.tokens, "confidence": [round(p, 4) for p in answer.confidence]}
