"""generate: a trained or exported model answers prompts. Not a stage of the pipeline: no result depends on it."""

from collections.abc import Callable
from functools import partial

from pipeline.inference import console
from pipeline.inference.generation import Generator


def run(
    *,
    generator: Callable[..., Generator],
    model: str = "outputs/joint",
    prompt: str = "",
    prompts: str = "",
    confidence: bool = False,
) -> None:
    """Print the answer to ``--prompt``, or to each line of ``--prompts`` or of standard input as one JSON object a line.

    Args:
        model: folder of a trained model, of a backbone, or of an exported model (``--model``).
        generator: how it answers.
        prompt: text that is answered (``--prompt``).
        prompts: file with one prompt a line, plain text or a JSON object; "-" = standard input (``--prompts``).
        confidence: also print the probability of every token (``--confidence``).
    """
    console.answer(partial(generator, model), prompt, prompts, confidence)
