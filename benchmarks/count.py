"""How much a reader of the core has to read: lines, conditionals, files to open, long functions, edits for a new loss.

    python -m benchmarks.count                                the files in this folder
    python -m benchmarks.count --commit b7b0422               beside those of a commit (more may be given)
    python -m benchmarks.count --list                         also what was counted, with file and line
    python -m benchmarks.count --plan path/to/file.py:Class.method    another entry of a plan in this folder

Prints a table in Markdown; nothing is written, and none of the code that is counted runs. The files to open for an
update or a plan are those with a function or class that its entry reaches (`call_graph.py` says how that is found);
hooks of other systems, of which Newt has none, are left out where a version has such.
Complexity counts every branch: unlike ruff's C901 also ternaries, `and`, `or` and comprehensions.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.call_graph import CallGraph, Function

ROOT = Path(__file__).parent.parent
MOST_LINES, MOST_COMPLEX = 60, 12  # of a function
CHECKED = ("pipeline/", "stages/")  # where functions are measured
TEXTS = (".py", ".yaml", ".md")  # what is read at all

# A conditional counts where a name in it contains a word of another system than Newt, or of learning from pictures.
# Terminations are an option of Newt itself, and `expert_action` is what it imitates.
WORDS = (
    "experts|balance|routing|routed|noting|notes|clusters?|clustered|clusterer|history|memory|past|backbone|shared|"
    "clipped|ppo|phase|log_probs?|scaling|stages|staged|curriculum|climb|terms|identify|task_id|harmony|sight|vision|"
    "pictures?|pixels|images?"
)


@dataclass(frozen=True)
class Layout:
    """Where things lie in a version of the project."""

    core: tuple[str, ...]  # files and folders of the model and its training
    rooms: Mapping[str, tuple[str, ...]]  # what is counted by itself, and taken out of the core
    update: str  # entry of one update, `path:Class.method`
    plan: tuple[str, ...]  # entries of one plan: the plan alone, and what a caller acts through
    hooks: tuple[str, ...] = ()  # files with nothing but calls of other systems' parts, a list that is empty for Newt
    # (path, marker) of each place to edit for a new loss term of the model. They were found by hand, by following one
    # that is there; every marker is searched for, so that the list cannot go stale.
    new_loss: tuple[tuple[str, str], ...] = ()


ROOMS = ("pipeline/model/", "pipeline/learn/", "pipeline/train/")
# Where a coefficient is added, in both layouts: with the default 0 there, no parameter file has to change. What is
# followed for `new_loss` is the loss of terminations.
_COEFFICIENT = ("pipeline/config/__init__.py", "termination_coef: NotNegative")
OLD = Layout(
    core=("pipeline/model", "pipeline/train", "pipeline/shapes.py", "pipeline/observing.py", "pipeline/adapt.py",
          "pipeline/data/replay.py", "pipeline/data/rows.py", "pipeline/data/episode_table.py"),
    rooms={
        "run": ("pipeline/train/checkpoint.py", "pipeline/train/interrupt.py", "pipeline/train/metrics.py",
                "pipeline/train/ranks.py", "pipeline/train/runtime.py", "pipeline/train/scratch.py"),
        "systems": ("pipeline/model/clipped.py", "pipeline/model/clusters.py", "pipeline/model/experts.py",
                    "pipeline/model/history.py", "pipeline/model/scaling.py", "pipeline/model/task_terms.py",
                    "pipeline/train/clustering.py", "pipeline/train/curriculum.py", "pipeline/train/expert_use.py",
                    "pipeline/train/policy_phase.py"),
        "pixels": ("pipeline/vision", "pipeline/train/autoencoding.py", "pipeline/train/seeing.py"),
    },
    update="pipeline/train/step.py:Learner.update",
    plan=("pipeline/model/planner.py:plan", "pipeline/model/actor.py:Actor.act"),
    new_loss=(
        _COEFFICIENT,
        ("pipeline/model/losses.py", "def termination_loss("),
        ("pipeline/train/objective.py", "termination: Tensor | None = None"),
        ("pipeline/train/objective.py", "bc = imitation = termination = task_id = accuracy = None"),
        ("pipeline/train/objective.py", "total = total + learning.termination_coef * termination"),
        ("pipeline/train/objective.py", "termination, bc = (part if part is None else part.mean()"),
        ("pipeline/train/objective.py", "reward, value, bc, imitation, latents, chosen, termination, task_id"),
        ("pipeline/train/step.py", 'metrics["termination_loss"] = found.termination.detach()'),
        ("docs/metrics.md", "`train/termination_loss`"),
    ),
)  # fmt: skip
NEW = Layout(
    core=("pipeline/model", "pipeline/learn", "pipeline/shapes.py", "pipeline/observing.py", "pipeline/adapt.py",
          "pipeline/adapters.py"),
    rooms={"run": ("pipeline/run",), "systems": ("pipeline/systems",), "pixels": ("pipeline/pixels",)},
    update="pipeline/learn/learner.py:Learner.update",
    plan=("pipeline/model/planner.py:plan", "pipeline/model/actor.py:Actor.act"),
    hooks=("pipeline/learn/extension.py",),
    new_loss=(
        _COEFFICIENT,
        ("pipeline/model/math.py", "def termination_loss("),
        ("pipeline/learn/learner.py", 'parts["termination_loss"]'),
        ("docs/reference/metrics.md", "`train/termination_loss`"),
    ),
)  # fmt: skip


@dataclass
class Counts:
    """What was counted in one version; a place is `path:line: text`."""

    lines: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by room: files, lines of code, lines
    conditionals: list[str] = field(default_factory=list)
    update: set[str] = field(default_factory=set)
    plans: dict[str, set[str]] = field(default_factory=dict)  # by entry
    functions: int = 0
    long: list[str] = field(default_factory=list)
    complex: list[str] = field(default_factory=list)
    new_loss: list[str] = field(default_factory=list)


def read_version(commit: str | None, root: Path = ROOT) -> dict[str, str]:
    """Return the text files of a commit, or of the folder as it is, by path.

    Raises:
        ValueError: Git does not know the commit, or this is no checkout.
    """
    if commit is None:
        listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
        return {
            path: (root / path).read_text(encoding="utf-8")
            for path in listed
            if path.endswith(TEXTS) and (root / path).is_file()
        }
    found = {}
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "--format=tar", commit))) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(TEXTS) else None
            if content:
                found[member.name] = content.read().decode()
    return found


def _git(root: Path, *command: str) -> bytes:
    done = subprocess.run(["git", *command], cwd=root, capture_output=True)
    if done.returncode:
        raise ValueError(f"`git {' '.join(command)}` failed: {done.stderr.decode().strip()}")
    return done.stdout


def count(sources: Mapping[str, str], layout: Layout) -> Counts:
    """Count one version.

    Args:
        sources: text of its files by path.
        layout: where things lie in it.

    Raises:
        ValueError: a path, an entry or a marker of the layout is not there.
    """
    found, graph = Counts(), CallGraph({path: text for path, text in sources.items() if path.startswith("pipeline/")})
    apart = {path for names in layout.rooms.values() for path in _files(sources, names)}
    rooms = {"core": [path for path in _files(sources, layout.core) if path not in apart]}
    rooms |= {room: _files(sources, names) for room, names in layout.rooms.items()}
    rooms["model/ and learn/ (before: train/), all that lies in them"] = [
        path for path in sorted(sources) if path.startswith(ROOMS) and path.endswith(".py")
    ]
    for room, paths in rooms.items():
        code = sum(len(code_lines(sources[path])) for path in paths)
        found.lines[room] = len(paths), code, sum(len(sources[path].splitlines()) for path in paths)
    found.conditionals = [place for path in rooms["core"] for place in conditionals(path, sources[path])]
    found.update, *plans = (
        {key.partition(":")[0] for key in graph.reached(entry, without=_files(sources, layout.hooks))}
        for entry in (layout.update, *layout.plan)
    )
    found.plans = dict(zip(layout.plan, plans, strict=True))
    for path in sorted(path for path in sources if path.startswith(CHECKED) and path.endswith(".py")):
        for node in [node for node in ast.walk(ast.parse(sources[path])) if isinstance(node, Function)]:
            found.functions += 1
            lines, complexity = (node.end_lineno or node.lineno) - node.lineno + 1, branches(node)
            if lines > MOST_LINES:
                found.long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
            if complexity > MOST_COMPLEX:
                found.complex.append(f"{path}:{node.lineno}: {node.name} has complexity {complexity}")
    found.new_loss = [_find(sources, path, marker) for path, marker in layout.new_loss]
    return found


def _files(sources: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return the Python files that are named, or lie in a folder that is."""
    for name in names:
        if not any(path == name or path.startswith(f"{name}/") for path in sources):
            raise ValueError(f"{name} is in the layout, but not among the files: correct the layout in {__file__}")
    inside = tuple(f"{name}/" for name in names)
    return sorted(path for path in sources if path.endswith(".py") and (path in names or path.startswith(inside)))


def _find(sources: Mapping[str, str], path: str, marker: str) -> str:
    for number, line in enumerate(sources.get(path, "").splitlines(), 1):
        if marker in line:
            return f"{path}:{number}: {line.strip()}"
    raise ValueError(f"{path} does not contain {marker!r}: correct `new_loss` of the layout in {__file__}")


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines with code: no blank line, comment or docstring."""
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def conditionals(path: str, text: str) -> list[str]:
    """Return the conditionals of a file in which a name contains one of `WORDS`."""
    pattern, lines = re.compile(rf"(^|_)({WORDS})(_|$)"), text.splitlines()
    tests = [test for test in _tests(ast.parse(text)) if any(pattern.search(name) for name in _names(test))]
    return [f"{path}:{number}: {lines[number - 1].strip()}" for number in sorted(test.lineno for test in tests)]


def _tests(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what is decided on: the tests of if, while, ternary, comprehension and match, and comparisons alone."""
    for child in ast.iter_child_nodes(node):
        tests: list[ast.expr] = []
        if isinstance(child, ast.Assert | ast.Raise):
            continue
        if isinstance(child, ast.If | ast.While | ast.IfExp):
            tests = [child.test]
        elif isinstance(child, ast.comprehension):
            tests = child.ifs
        elif isinstance(child, ast.Match):
            tests = [child.subject]
        elif isinstance(child, ast.BoolOp | ast.Compare):
            tests = [child]
        inside = {id(part) for test in tests for part in ast.walk(test)}
        yield from tests
        yield from (found for found in _tests(child) if id(found) not in inside)


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names in an expression, as words with underscores, and texts that are names: `"cluster" in state`."""
    for part in ast.walk(node):
        name = getattr(part, "id", None) or getattr(part, "attr", None) or getattr(part, "value", None)
        if isinstance(name, str) and name.isidentifier():
            yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def branches(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function, nested ones included: 1, and 1 for each way to go on."""
    found = 1
    for node in ast.walk(function):
        if isinstance(
            node, ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case
        ):
            found += 1
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            found += 1 + len(node.ifs)
    return found


def table(versions: Mapping[str, Counts]) -> str:
    """Return the counts of versions side by side, in Markdown."""
    rows: dict[str, list[str]] = {}
    for counts in versions.values():
        row = {
            f"{room}: lines of code (of all), files": f"{code} ({lines}), {files}"
            for room, (files, code, lines) in counts.lines.items()
        }
        decided = {place.partition(":")[0] for place in counts.conditionals}
        row["conditionals in the core for other systems"] = f"{len(counts.conditionals)} in {len(decided)} files"
        row["files to open for one update (of them in the core's rooms)"] = _opened(counts.update)
        for entry, files in counts.plans.items():
            row[f"files to open for one plan, from {entry.rpartition(':')[2]}"] = _opened(files)
        row[f"functions over {MOST_LINES} lines"] = f"{len(counts.long)} of {counts.functions}"
        row[f"functions over complexity {MOST_COMPLEX}"] = f"{len(counts.complex)} of {counts.functions}"
        edited = {place.partition(":")[0] for place in counts.new_loss}
        row["edits for a new loss term"] = f"{len(counts.new_loss)} in {len(edited)} files" if edited else "not listed"
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    lines = [f"| | {' | '.join(versions)} |", f"|---|{'---|' * len(versions)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])


def _opened(files: set[str]) -> str:
    """Return how many files, and how many of them lie in the rooms of model and learning."""
    return f"{len(files)} ({sum(path.startswith(ROOMS) for path in files)})"


def listing(counts: Counts) -> str:
    """Return what was counted, a line each."""
    parts = {"conditionals": counts.conditionals, "files for one update": sorted(counts.update)}
    parts |= {f"files for one plan, from {entry}": sorted(files) for entry, files in counts.plans.items()}
    parts |= {"long": counts.long, "complex": counts.complex, "edits for a new loss term": counts.new_loss}
    return "\n".join(f"\n{name}:\n" + "\n".join(f"  {one}" for one in found) for name, found in parts.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Count this folder and the commits asked for, and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", nargs="*", default=[], help="commits to put beside the files in this folder")
    parser.add_argument("--update", help="entry of an update in this folder, path:Class.method")
    parser.add_argument("--plan", nargs="*", help="entries of a plan in this folder, likewise")
    parser.add_argument("--list", action="store_true", help="print what was counted, with file and line")
    options = parser.parse_args(arguments)
    versions = {}
    for commit in [*options.commit, None]:
        sources = read_version(commit)
        layout = OLD if any(path.startswith("pipeline/train/") for path in sources) else NEW
        if commit is None:
            layout = replace(layout, update=options.update or layout.update, plan=options.plan or layout.plan)
        versions[commit or "here"] = count(sources, layout)
    print(table(versions))
    for name, counts in versions.items() if options.list else ():
        print(f"\n{name}{listing(counts)}")


if __name__ == "__main__":
    main()
