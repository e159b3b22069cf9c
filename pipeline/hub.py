"""The release: a folder in the form of the Hugging Face Hub, with a card written from the run; and its push."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's
from pydantic import BaseModel

from pipeline import config, store
from pipeline.files import atomic_folder, write_json
from pipeline.report.results import Estimate, Results

TEMPLATE = Path(__file__).with_name("card.md.jinja")
COLUMNS = (("pretrain", "policy"), ("finetune", "policy"), ("finetune", "plan"))  # of the card's table of scores
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


class Pushed(NamedTuple):
    """Where a release went."""

    repo: str
    commit: str
    new: bool  # whether there was anything to send


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repo.

    Raises:
        ValueError: naming the parameter.
    """
    if not store.REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".")):
        raise ValueError(
            f"publish.repo_id is {repo_id!r}: expected `owner/name` of letters, digits, `-`, `_` and `.`, "
            "or null to push nothing."
        )


def write_release(root: str | Path, results: Results, folder: str | Path, repo_id: str | None) -> None:
    """Make the release folder: the finetuned checkpoint, its adapters, metrics.json, a video and the card.

    The same inputs give the same bytes.

    Args:
        root: of the project, where `checkpoints/` lies.
        results: what the stages left behind there.
        folder: replaced whole, or not at all.
        repo_id: where it will be found; None says in the card that it is the folder itself.

    Raises:
        FileNotFoundError: a stage has not run.
        ValueError: the scores are of other tasks, or a file holds a token or a path of this machine.
    """
    checkpoints = Path(root) / "checkpoints"
    needed = {stage: path for stage, path in results.missing.items() if stage not in ("demos", "publish")}
    if needed:
        missing = "\n".join(f"  {path}: run `dvc repro {stage}`" for stage, path in needed.items())
        raise FileNotFoundError(f"a release needs what these stages write:\n{missing}")
    with atomic_folder(folder) as partial:
        _copy(checkpoints / "finetune/model", partial)
        for task in results.adapted:
            _copy(checkpoints / "adapt" / task / "adapter", partial / "adapters" / task)
        if results.videos:
            best = max(results.videos, key=lambda entry: entry[0].score)
            shutil.copyfile(best[1], partial / "replay.mp4")
        write_json(partial / "metrics.json", _metrics(results))
        source = repo_id or Path(folder).as_posix()
        (partial / "README.md").write_text(_card(partial, results, source))
        _refuse_private(partial, Path(root))


def hashes(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path in it."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): store.sha256(path) for path in files}


def push(folder: str | Path, settings: config.Publish, api: HfApi) -> Pushed:
    """Make the repo on the Hub hold exactly this folder, in one commit, and tag it. Nothing new makes no commit.

    An interrupted push is continued by pushing again: files that arrived are not sent twice.

    Args:
        folder: the release.
        settings: `repo_id` is set.
        api: the Hub's client; it finds the token by its own means.

    Raises:
        ValueError: the repo holds something else, or the tag is on another commit.
        OSError: the Hub refused or could not be reached; the message says what to do, and holds no token.
    """
    repo = settings.repo_id
    if repo is None:
        raise ValueError("publish.repo_id is null: there is nowhere to push to.")
    try:
        api.create_repo(repo, private=settings.private, exist_ok=True)
        there = set(api.list_repo_files(repo)) - {".gitattributes", "README.md"}
        if there and "tasks.json" not in there:
            raise ValueError(
                f"{repo} already holds other files ({', '.join(sorted(there)[:3])}). A release replaces all files of "
                "its repo: choose another publish.repo_id."
            )
        before = api.repo_info(repo).sha
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Publish", delete_patterns="*").oid
        if settings.tag:
            _tag(api, repo, settings.tag, commit)
    except (OSError, HTTPError) as error:
        raise OSError(_explain(error, repo)) from None
    return Pushed(repo, commit, new=commit != before)


def _tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    if tag not in tagged:
        api.create_tag(repo, tag=tag, revision=commit)
    elif tagged[tag] != commit:
        raise ValueError(
            f"publish.tag {tag!r} is on another commit of {repo} ({tagged[tag][:12]}), and a version's tag does not "
            f"move. The release was pushed as {commit[:12]}; choose a new tag and run `dvc repro publish` again."
        )


def _explain(error: Exception, repo: str) -> str:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    advice = {
        401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
        403: "The token may not write there: log in with `hf auth login`, or choose another publish.repo_id.",
        404: "There is no such owner, or the token may not see the repo.",
        429: "The Hub asks for a pause: try again in some minutes.",
    }.get(status or 0, "Check the network, then run `dvc repro publish` again: it goes on where it stopped.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    token = get_token()
    if token:
        reason = reason.replace(token, "<token>")
    return f"pushing to {repo} failed: {_TOKEN.sub('<token>', reason)} {advice}"


def _copy(source: Path, target: Path) -> None:
    """Copy a folder's contents, not its permissions: DVC's cache is read-only."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist. Run `dvc repro`, or `dvc checkout` if it ran before.")
    shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _metrics(results: Results) -> dict[str, Any]:
    assert results.scores is not None
    return {
        "scores": results.scores.model_dump(),
        "adapted": {task: _without_run(adaptation) for task, adaptation in results.adapted.items()},
        "runs": {stage: run.model_dump() for stage, run in results.runs.items() if stage != "publish"},
        "confidence": results.confidence,
    }


def _without_run(adaptation: BaseModel) -> dict[str, Any]:
    return adaptation.model_dump(exclude={"stage", "versions", "machine"})


def _card(folder: Path, results: Results, source: str) -> str:
    """Write the card of the release in `folder`."""
    checkpoint = store.read_checkpoint(folder)
    assert results.scores is not None
    for stage, mode in COLUMNS:
        for spec in checkpoint.specs:
            if spec.name not in results.scores.models.get(stage, {}).get(mode, {}):
                raise ValueError(
                    f"checkpoints/evaluate/metrics/scores.json has no score of {spec.name} for {stage}, {mode}: it is "
                    "of another run. Run `dvc repro evaluate`."
                )
    title = source.rsplit("/", 1)[-1] if store.REPO_ID.fullmatch(source) else "Eft world model"
    planned = results.scores.models["finetune"]["plan"]
    data = ModelCardData(
        model_name=title,
        license="mit",
        library_name="eft",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "robotics", "world-model", "language-conditioned"],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type=spec.name,
                dataset_name=spec.name,
                metric_type="score",
                metric_name="score with planning",
                metric_value=round(planned[spec.name].score, 4),
            )
            for spec in checkpoint.specs
        ],
    )
    latest = results.runs.get("evaluate") or next(iter(results.runs.values()))
    environment = jinja2.Environment(trim_blocks=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "interval": _interval}
    return environment.from_string(TEMPLATE.read_text()).render(
        front_matter=data.to_yaml(),
        title=title,
        source=source,
        specs=checkpoint.specs,
        columns=COLUMNS,
        scores=results.scores,
        episodes=len(planned[checkpoint.specs[0].name].scores),
        confidence=results.confidence,
        adapted=results.adapted,
        runs={stage: run for stage, run in results.runs.items() if stage != "publish"},
        demos=results.demos,
        num_parameters=sum(p.numel() for n, p in checkpoint.model.named_parameters() if not n.startswith("target_")),
        encoder=checkpoint.embeddings.encoder,
        machine={"cpu": "unknown", "cores": "unknown", "gpu": None} | latest.machine,
        versions=latest.versions,
        params=results.params.replace("``````", "` ` ` ` ` `"),
    )


def _cell(text: object) -> str:
    """Make a text safe within a cell of a Markdown table."""
    safe = " ".join(str(text).split())
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        safe = safe.replace(mark, written)
    return safe


def _interval(estimate: Estimate) -> str:
    return f"{estimate.score:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _refuse_private(folder: Path, root: Path) -> None:
    """Refuse a release whose texts hold a token or a path of this machine."""
    token = get_token()
    places = {str(place.resolve()) for place in (root, Path.home()) if len(place.resolve().parts) > 1}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".md", ".yaml"):
            continue
        text = path.read_text()
        name = path.relative_to(folder)
        if _TOKEN.search(text) or (token and token in text):
            raise ValueError(
                f"{name} of the release would hold an access token. Remove it from params.yaml or the tasks."
            )
        for place in places:
            if re.search(rf"(?<![\w/.-]){re.escape(place)}(?=/|\b)", text):
                raise ValueError(
                    f"{name} of the release would hold a path of this machine ({place}). Write it relative."
                )
