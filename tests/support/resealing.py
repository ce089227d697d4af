"""Manifests of a finished run, made to agree with files that a test has changed: what neither accidents nor edits do."""

from pipeline.files import json_bytes, read_json, sha256
from pipeline.manifests import sealed

PHASES = ("warmup", "joint", "finetune", "controls/backbone", "controls/warmup")
ORDER = ("data/backbone/model.json", *(f"outputs/{name}/model.json" for name in PHASES), "outputs/evaluate/metrics.json")


def reseal(folder):
    """Hash every file anew that a manifest lists, and name the new digests wherever the old ones stood."""
    renamed = {}
    for name in ORDER:
        content = read_json(folder / name, "any")
        before = content["digest"]
        content["sha256"] = {file: sha256((folder / name).with_name(file)) for file in content["sha256"]}
        for key in {"inputs", "evaluated"} & set(content):
            content[key] = {other: renamed.get(digest, digest) for other, digest in content[key].items()}
        content = sealed(content)
        (folder / name).write_bytes(json_bytes(content))
        renamed[before] = content["digest"]
