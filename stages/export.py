"""export: a trained model as a folder that stands alone. Not a stage of the pipeline: no result depends on it."""

from pathlib import Path


def run(*, out: str, model: str = "outputs/joint", push: str = "", backbone: str, prepared: str, evaluation: str) -> None:
    """Write ``out`` with weights, tokenizer and model card; ``generate --model`` and ``Generator`` load it by path.

    Args:
        out: folder of the exported model.
        model: folder that a training phase wrote (``--model``).
        push: repository on the Hugging Face hub, owner/name, that the folder is uploaded to (``--push``); "" = none.
        backbone: folder of its backbone.
        prepared: folder of the prepared data, for the tokenizer.
        evaluation: folder that evaluate wrote, for the model card; it may be missing.
    """
    from pipeline.inference import exporting  # brings torch and matplotlib, which checks and help do without

    print(f"export: {exporting.export(Path(model), Path(backbone), Path(prepared), Path(evaluation), Path(out))}")
    if push:
        print(f"export: {exporting.push(Path(out), push)}")
