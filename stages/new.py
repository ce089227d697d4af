"""new: looks at data of one's own and writes a preset that trains on them."""

from pipeline.errors import ConfigError


def run(
    *name: str, train: str = "", test: str = "", prompt: str = "", response: str = "", backbone: str = "", overwrite: bool = False
) -> None:
    """Tell what a file of examples holds, propose settings by stated rules, and write them as gin/presets/NAME.gin.

    Args:
        name: of the preset.
        train: text or puzzles as JSON lines, *.json, *.csv or *.parquet; or embeddings as *.npy, *.safetensors or a folder of them.
        test: file of test examples; "" = a share of the training file, held out by content.
        prompt: template of a prompt over a row's fields, such as '{question}'; "" = by the fields' known names.
        response: template of what is learned, such as '{answer}'.
        backbone: folder, package:file.gguf or hub name of a pretrained model; "" = a small one from scratch.
        overwrite: replace a preset of this name.
    """
    if len(name) != 1:
        raise ConfigError(f"new takes one name, of the preset that it writes, got: {' '.join(name) or 'none'}")
    from pipeline.planning import own_data  # brings torch and the training loop, which help does without

    own_data.write_preset(own_data.Request(name[0], train, test, prompt, response, backbone), overwrite=overwrite)
