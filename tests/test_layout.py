"""The rules of the house that no other tool holds."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import config

ROOT = Path(__file__).parent.parent
CODE = sorted(
    path for folder in ("eft", "pipeline", "stages", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
RUNNING = [path for path in CODE if path.relative_to(ROOT).parts[0] in ("eft", "pipeline", "stages")]
# `pipeline/model` and `pipeline/learn` are Newt alone. The expert, of demonstrations, is a word of its own.
OTHER_SYSTEMS = {
    "experts", "cluster", "clusters", "history", "clipped", "ppo", "m3po", "mow", "scalezero", "staged",
    "curriculum", "sight", "vision", "pixel", "pixels", "picture", "pictures", "image", "images",
}  # fmt: skip
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def relative(paths) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def paths_of(stage: str, kind: str) -> dict[str, dict]:
    """The deps, outs or metrics of a stage, by path with their options; a matrix stands for each of its members."""
    found = {}
    for entry in STAGES[stage].get(kind, []):
        path, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        found[re.sub(r"\$\{item\.\w+\}", "mw-drawer-close", path)] = options
    return found


def test_data_folders_hold_no_code():
    # `datasets/__init__.py`, or any module there, would shadow the library `datasets`.
    assert relative([*(ROOT / "datasets").rglob("*.py"), *(ROOT / "checkpoints").rglob("*.py")]) == []


def test_nothing_else_is_called_datasets():
    # With `python -m stages.x` and pytest, folders of these may stand first in the import path.
    for folder in ("eft", "pipeline", "stages", "tests", "benchmarks"):
        assert relative(path for path in (ROOT / folder).rglob("*") if path.stem == "datasets") == []


def test_no_file_is_named_after_nothing():
    assert relative(path for path in CODE if re.search(r"util|common|helper|misc", path.stem)) == []


@pytest.mark.parametrize("path", relative(RUNNING))
def test_a_function_fits_on_one_screen(path):
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}  # docstring included
    assert {name: number for name, number in lines.items() if number > 60} == {}, "of at most 60 lines"


def words(text: str) -> set[str]:
    """The words of identifiers, strings and comments: `DropOldest_rows` has three."""
    parts = re.findall(r"[A-Za-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text))
    return {part.lower() for part in parts}


def test_words_are_found_within_names():
    assert words("class ImageEncoder: num_clusters = 'M3PO'") >= {"image", "encoder", "num", "clusters", "m3po"}


@pytest.mark.parametrize("path", relative(path for path in RUNNING if path.parent.name in ("model", "learn")))
def test_the_core_names_no_other_system(path):
    assert OTHER_SYSTEMS & words((ROOT / path).read_text()) == set()


def test_what_runs_reads_nothing_of_benchmarks():
    # Not even a result: what a stage reads is declared in dvc.yaml.
    assert relative(path for path in RUNNING if "benchmarks" in path.read_text()) == []


def without_encoding(code: str) -> list[int]:
    """The lines that read or write text in whatever encoding the machine is set to."""
    found = []
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call) or any(word.arg == "encoding" for word in call.keywords):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        binary = any(isinstance(word, ast.Constant) and "b" in str(word.value) for word in call.args)
        if name in ("read_text", "write_text") or (name == "open" and not binary):
            found.append(call.lineno)
    return found


def test_what_the_search_for_encodings_finds():
    code = "p.read_text()\np.write_text(x)\np.open()\nopen(p, 'w')\np.open('rb')\np.read_text(encoding='utf-8')"
    assert without_encoding(code) == [1, 2, 3, 4]


@pytest.mark.parametrize("path", [path for path in relative(CODE) if not path.startswith("tests/")])
def test_text_is_read_and_written_as_utf_8_on_every_machine(path):
    code = re.sub(r"\b(os|av|tarfile)\.open\(", "opened(", (ROOT / path).read_text(encoding="utf-8"))  # no text files
    assert without_encoding(code) == []


def test_every_stage_has_its_file_and_every_file_its_stage():
    assert sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__") == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_file_and_depends_on_it(stage):
    # The command is part of the stage's hash: no number of devices, no host in it.
    assert re.fullmatch(rf"python -m stages\.{stage}( \$\{{item\.task\}})?", STAGES[stage]["cmd"])
    assert f"stages/{stage}.py" in paths_of(stage, "deps")
    assert STAGES[stage]["desc"].endswith(".")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_what_is_there_or_made(stage):
    made = {path for other in STAGES for kind in ("outs", "metrics") for path in paths_of(other, kind)}
    for path in paths_of(stage, "deps"):
        written = any(path == out or out.startswith(f"{path}/") or path.startswith(f"{out}/") for out in made)
        assert written or (ROOT / path).exists(), f"{stage} depends on {path}, which is neither there nor made"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_parameters_that_exist(stage):
    params = config.read_params(ROOT / "params.yaml")
    for key in STAGES[stage].get("params", []):
        section, _, name = key.partition(".")
        assert section in params, f"{stage}: {key}"
        assert not name or name in params[section], f"{stage}: {key}"


def test_the_sections_of_params_are_those_of_config_in_order():
    assert list(config.read_params(ROOT / "params.yaml")) == ["seed", *config.SECTIONS]


def test_git_ignores_what_dvc_keeps_and_nothing_that_git_keeps():
    # Else DVC writes ignore files of its own when it runs.
    cached, kept = [], []
    for stage in STAGES:
        for kind in ("outs", "metrics"):
            for path, options in paths_of(stage, kind).items():
                (kept if options.get("cache") is False else cached).append(f"{path}/x" if kind == "outs" else path)
    assert ignored(cached) == cached
    assert ignored(kept) == []


def ignored(paths: list[str]) -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:  # another repository around it may ignore all
        pytest.skip("not a Git checkout")
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    result = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode <= 1, result.stderr
    return result.stdout.splitlines()
