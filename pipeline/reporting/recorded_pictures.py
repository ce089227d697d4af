"""Pictures of a refinement for those who look at a run elsewhere: a GIF that plays a puzzle, or a table of the steps of a text."""

from pathlib import Path

from pipeline.files import write_atomic
from pipeline.manifests import Manifest
from pipeline.models.model_folder import METRICS
from pipeline.reporting import animation
from pipeline.reporting.chapters import last_phase
from pipeline.reporting.markdown import escaped, markdown
from pipeline.reporting.refinement import refinement
from pipeline.text.rendering import is_reference, rendering_of


def draw(evaluation: Path, out: Path) -> None:
    """Write ``refinement.gif`` or ``refinement.md`` of an evaluation into a folder; nothing where its trace has nothing to show.

    Args:
        evaluation: folder with an evaluation's metrics and trace.
        out: folder to write to.

    Raises:
        DataError: the trace is not what evaluate wrote.
    """
    manifest = Manifest(evaluation / METRICS, "evaluate", "evaluate")
    rendering = rendering_of((trace := manifest.json("trace.json"))["rendering"])
    if rendering.predicts == "embeddings":
        return
    if rendering.cell is not None:
        animation.animate(evaluation, out / "refinement.gif")
        return
    refined = last_phase(manifest.content["models"])
    shown = refinement(trace, refined, is_reference, None)
    if not shown.examples:
        return
    example = shown.examples[0]
    rows = [["", "answer", "changed, right, sure"]]
    rows += [[s.title, escaped("".join(token.text for token in s.tokens)), s.words] for s in example.stages]
    rows.append(["reference", escaped(example.answer), ""])
    text = f"# Example {example.number}, {example.kind}\n\n{shown.rule}\n\n{escaped(example.question)}\n\n{markdown(rows)}"
    write_atomic(out / "refinement.md", text.encode())
