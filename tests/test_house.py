"""The rules of the house (docs/architecture.md) as tests. Each file is parsed once and every offender is listed.

Each sweep asserts its own count, so that a sweep over nothing fails.
"""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import gin
from ruamel.yaml import YAML

from pipeline.command_line import SECTIONS, STAGES, TOOLS
from pipeline.machine.closure import NEUTRAL, imports
from stages import configure
from tests.conftest import ROOT

PACKAGES = ("components", "pipeline", "stages")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
BELOW = {"components": {"components"}, "pipeline": {"components", "pipeline"}, "stages": {"components", "pipeline", "stages"}}


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


PURE = {
    "torch", "einops", "jaxtyping", "math", "dataclasses", "collections", "typing", "fnmatch", "difflib", "contextlib",
    "functools", "itertools", "statistics", "decimal", "re", "inspect", "types", "bisect", "copy",
}  # fmt: skip
DOORS = {  # outside library -> the only files that may import it
    "gin": {"pipeline/settings/config.py", "pipeline/settings/ginfiles.py", "pipeline/settings/ginstate.py"},
    "beartype": {"pipeline/settings/typecheck.py"},
    "ruamel": {"pipeline/settings/params.py"},
    "fire": {"pipeline/command_line.py"},
    "tokenizers": {"pipeline/text/tokenizer.py"},
    "pyarrow": {"pipeline/text/tables.py"},
    "bitsandbytes": {"pipeline/models/quantised.py"},
    "peft": {"pipeline/models/lora.py"},
    "lm_eval": {"pipeline/evaluation/harness.py"},
    "transformers": {"pipeline/models/transformers.py"},
    "gguf": {"pipeline/models/gguf.py"},
    "huggingface_hub": {"pipeline/models/hub.py"},
    "webdataset": {"pipeline/data/shard_writer.py", "pipeline/data/streaming.py"},
    "torchdata": {"pipeline/data/loading.py"},
    "matplotlib": {f"pipeline/reporting/{name}.py" for name in ("animation", "figures", "panels", "schematics")},
    "dvc": {"pipeline/reporting/revisions.py"},
    "jinja2": {"pipeline/reporting/webpage.py"},
    "markdown_it": {"pipeline/reporting/webpage.py"},
    "clearml": {"pipeline/tracking/clearml.py"},
    "PIL": {"pipeline/tracking/tensorboard.py", "pipeline/reporting/animation.py"},
    "wandb": {"pipeline/tracking/wandb.py"},
    "mlflow": {"pipeline/tracking/mlflow.py"},
    "tqdm": {"pipeline/progress.py"},
    "submitit": {"pipeline/machine/slurm.py", "pipeline/machine/slurm_task.py"},
    "rich": {"pipeline/diagnosis/watching.py"},
    "safetensors": {
        "pipeline/diagnosis/recorded.py",
        "pipeline/tensor_files.py",
        "pipeline/machine/cached_results.py",
        "pipeline/corpora/prepared.py",
        "pipeline/data/shard_index.py",
        "pipeline/data/shard_writer.py",
    },
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@functools.cache
def roots(path: Path) -> frozenset[str]:
    """First names of everything a file imports."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return frozenset(found)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Deepest nesting of loops, branches, with and try below a function; an elif is as deep as its if."""
    blocks = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    deepest = depth
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, nesting(child, depth + (isinstance(child, blocks) and not is_elif)))
    return deepest


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]


def none(offenders: list[str]) -> None:
    """No rule is broken; otherwise each breach on a line of its own."""
    assert not offenders, "\n" + "\n".join(offenders)


def test_sweeps_see_the_whole_house():
    assert len(MODULES) >= 150
    assert sum(package(path) == "components" for path in MODULES) >= 50
    assert len(list((ROOT / "gin").rglob("*.gin"))) >= 15


def test_imports_run_one_way():
    upward = {path: roots(path) & set(PACKAGES) - BELOW[package(path)] for path in MODULES}
    none([f"{name(path)} imports {sorted(found)}; stages -> pipeline -> components" for path, found in upward.items() if found])


def impurities(path: Path) -> list[str]:
    """What a file of components/ must not do: outside libraries, devices, prints, files and draws of the global generator."""
    found = [f"imports {library}" for library in sorted(roots(path) - PURE - {"components"})]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda"):
            found.append(f"line {node.lineno} names a device")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "open"):
                found.append(f"line {node.lineno} calls {called}")
            draws = re.fullmatch(r"torch\.(rand\w*|bernoulli|normal|multinomial)", called)
            if draws and not any(k.arg == "generator" for k in node.keywords):
                found.append(f"line {node.lineno} draws without a generator")
    return [f"{name(path)} {what}" for what in found]


def test_components_are_pure(tmp_path, monkeypatch):
    none([what for path in MODULES if package(path) == "components" for what in impurities(path)])
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "bad.py").write_text("import os\nx = torch.rand(3, device='cuda')\nprint(x)\n")
    expected = ["imports os", "line 2 draws without a generator", "line 2 names a device", "line 3 calls print"]
    assert sorted(impurities(tmp_path / "bad.py")) == [f"bad.py {what}" for what in expected]


def test_outside_libraries_come_through_their_door():
    assert {library: {name(path) for path in MODULES if library in roots(path)} for library in DOORS} == DOORS


def oversized(path: Path) -> list[str]:
    """The file, when it is too long, and its functions that are too long or nested too deeply."""
    lines = len(text_of(path).splitlines())
    most = 80 if path.parent.name == "stages" else 300
    found = [f"{name(path)} has {lines} lines, at most {most}"] * (lines > most)
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1 - len((ast.get_docstring(function) or "").splitlines())
        what = f"{name(path)}:{function.lineno} {function.name}"
        found += [f"{what} has {length} lines, docstring aside"] * (length > 60)
        found += [f"{what} is nested {nesting(function)} deep"] * (nesting(function) > 4)
    return found


def test_sizes():
    none([what for path in MODULES for what in oversized(path)])


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions and methods without underscore; not nested ones, `forward`, or what a protocol or library interface dictates."""
    found: list[ast.FunctionDef] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.append(node)
        elif isinstance(node, ast.ClassDef):
            dictated = re.search(r"Protocol|BaseNode|ParserDelegate", " ".join(map(ast.unparse, node.bases))) or node.name in (
                "LiveSource",  # the Source protocol
                "CachedSource",
                "StreamedSource",
            )
            found += [] if dictated else [child for child in node.body if isinstance(child, ast.FunctionDef)]
    return [f for f in found if not f.name.startswith("_") and f.name != "forward"]


def undocumented(path: Path) -> list[str]:
    """What of a file's public surface has no docstring or no annotation."""
    found = [] if ast.get_docstring(parsed(path)) else [f"{name(path)} has no docstring"]
    for function in public_functions(parsed(path)):
        what = f"{name(path)}:{function.lineno} {function.name}"
        found += [] if ast.get_docstring(function) else [f"{what} has no docstring"]
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        found += [f"{what}: no annotation on {missing}"] * bool(missing)
    return found


def test_docstrings_and_annotations():
    assert sum(len(public_functions(parsed(path))) for path in MODULES) >= 500
    none([what for path in MODULES for what in undocumented(path)])


def public(tree: ast.Module) -> list[tuple[str, str]]:
    """Dotted name and docstring of a module, of its public classes and functions, and of their public methods."""
    pairs = [("", ast.get_docstring(tree) or "")]

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> None:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                pairs.append((prefix + child.name, ast.get_docstring(child) or ""))
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return [(what, text) for what, text in pairs if text]


def riddles(path: Path) -> list[str]:
    """Public docstrings whose first sentence has fewer than five words, or begins by pointing at what it does not name."""
    offenders = []
    for what, text in public(parsed(path)):
        sentence = re.split(r"(?<=[.?!])\s", " ".join(text.split("\n\n")[0].split()))[0]
        pointing = sentence.split()[0] in ("As", "It", "Its", "Of", "That", "Their", "They", "Those")
        if len(sentence.split()) < 5 or pointing:
            offenders.append(f"{name(path)} {what}: '{sentence}' needs a verb and a noun of its own")
    return offenders


def test_first_sentences_say_what_is_done(tmp_path, monkeypatch):
    assert sum(len(public(parsed(path))) for path in MODULES) >= 900
    none([what for path in MODULES for what in riddles(path)])
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(
        '"""Three words only. The next sentence does not count for the first."""\n'
        'class A:\n    """An A that is as it should be."""\n    def f():\n        """Those of both refiners, side by side."""\n'
        '    def _g():\n        """Private."""\n'
    )
    assert [what.split(": ")[0] for what in riddles(tmp_path / "bad.py")] == ["bad.py ", "bad.py A.f"]


FATES = {"found", "kept", "held", "told", "asked", "wanted", "opened", "judged"}  # what happened to it, not what it is


def misnamed(path: Path) -> list[str]:
    """Variables, arguments, attributes and functions named by what happened to them."""
    offenders = []
    for node in ast.walk(parsed(path)):
        names = (getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname"))
        offenders += [f"{name(path)}:{node.lineno} {called}" for called in names if isinstance(called, str) and called in FATES]
    return sorted(offenders)


def test_nothing_is_named_by_its_being_found(tmp_path, monkeypatch):
    none([what for path in MODULES for what in misnamed(path)])
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    lines = ["def kept(told, *asked):", "    self.held, wanted = told", "    return f(found=1)", "import a as opened"]
    (tmp_path / "bad.py").write_text("\n".join(lines))
    expected = ["1 asked", "1 kept", "1 told", "2 held", "2 told", "2 wanted", "3 found", "4 opened"]
    assert misnamed(tmp_path / "bad.py") == [f"bad.py:{line}" for line in expected]


def test_no_crowded_names():
    for path in MODULES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), name(path)
        assert not re.search(r"class \w*(Manager|Helper|Registry|Callback)\b", text_of(path)), name(path)


def test_init_files_are_empty_and_gin_holds_no_python():
    inits = [path for path in SOURCES if path.name == "__init__.py"]
    rooms = {path.parent for path in MODULES if path.parent.parent in (ROOT / "components", ROOT / "pipeline")}
    assert {path.parent for path in inits} == rooms | {ROOT / package for package in PACKAGES} and len(rooms) == 19
    assert all(path.read_text() == "" for path in inits)
    assert not list((ROOT / "gin").rglob("*.py")), "a Python file under gin/ would shadow gin-config"
    assert "site-packages" in gin.__file__


def test_stage_files_wire_only():
    for stage in STAGES:
        text = (ROOT / "stages" / f"{stage}.py").read_text()
        assert "backward" not in text
        loops = [n for f in functions(ROOT / "stages" / f"{stage}.py") for n in ast.walk(f) if isinstance(n, ast.For)]
        assert not loops, f"stages/{stage}.py loops"


def test_a_stage_has_one_name_everywhere():
    pipeline = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    params = set(YAML(typ="safe").load((ROOT / "params.yaml").read_text())) - {"preset", "common"}
    assert params == set(SECTIONS)
    files = {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__", "__main__", *TOOLS}
    gins = {p.stem for p in (ROOT / "gin").glob("*.gin")} - {"refined"}  # what four of them include
    beside = {"generate", "export", "ablate", "track"}  # no stages of it
    assert files - beside == set(pipeline) == {"configure", *STAGES} and beside == set(SECTIONS) - set(STAGES)
    assert files - {"configure"} == gins == set(SECTIONS)
    for stage in STAGES:
        assert f"--config build/config/{stage}.gin" in pipeline[stage]["cmd"]
        assert pipeline[stage]["desc"]


def test_dvc_yaml_reads_on_one_page():
    """Code is no dependency that is written by hand: configure lists it."""
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) <= 300
    pipeline = YAML(typ="safe").load(text)
    listed = {f"build/config/{stage}.{kind}" for stage in STAGES for kind in ("code", "yaml")}
    assert set(pipeline["stages"]["configure"]["outs"]) == listed | {f"build/config/{stage}.gin" for stage in SECTIONS}
    assert set(pipeline["stages"]["configure"]["params"]) == {"preset", "common", *SECTIONS}
    assert {*PACKAGES, "gin", "data/raw"} == set(pipeline["stages"]["configure"]["deps"])
    for stage in STAGES:
        deps = pipeline["stages"][stage]["deps"]
        assert deps[:2] == [f"build/config/{stage}.gin", f"build/config/{stage}.code"]
        wrong = [file for file in deps[2:] if not file.startswith(("data/", "outputs/")) or file.endswith(".py")]
        assert not wrong, f"dvc.yaml, {stage}: {wrong} are no data of other stages"
    assert pipeline["params"] == [f"build/config/{stage}.yaml" for stage in STAGES]
    assert set(SECTIONS) - set(STAGES) == set(configure.BESIDE)


def test_files_without_influence_are_used():
    used = {f for path in MODULES for f in imports(path, ROOT)}
    assert used >= set(NEUTRAL)


def test_readme_names_every_top_level_file():
    text = (ROOT / "README.md").read_text()
    for entry in (
        "pipeline/",
        "components/",
        "gin/",
        "stages/",
        "tests/",
        "docs/",
        "bench/",
        "dvc.yaml",
        "params.yaml",
        "Makefile",
        "CITATION.cff",
    ):
        assert f"`{entry}`" in text, f"README's table of files lacks {entry}"


def test_the_citation_is_of_this_version():
    citation = YAML(typ="safe", pure=True).load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {key: str(citation[key]) for key in ("version", "license")} == {key: project[key] for key in ("version", "license")}
    numbers = [paper["identifiers"][0]["value"].removeprefix("arXiv:") for paper in citation["references"]]
    sources = (ROOT / "README.md").read_text().partition("## Sources")[2]
    assert len(numbers) == 4 and sorted(numbers) == sorted(re.findall(r"arXiv ([\d.]+\d)", sources))
