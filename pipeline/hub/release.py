"""The model's release: a folder in the form of the Hugging Face Hub, with a card written from the run."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline import store
from pipeline.files import atomic_folder, sha256, write_json
from pipeline.hub.private import refuse_private
from pipeline.results import Estimate, Results
from pipeline.tasks.spec import TaskSpec

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
COLUMNS = (("pretrain", "policy"), ("finetune", "policy"), ("finetune", "plan"))  # of the card's table of scores
# The Hub's data set of the tasks whose names and score rules the catalogue has; scores are filed under it.
MMBENCH = "nicklashansen/mmbench"


def write_release(
    root: str | Path, results: Results, folder: str | Path, repo_id: str | None, demos_repo_id: str | None = None
) -> None:
    """Make the release folder: the finetuned checkpoint, its adapters, scores, a video and the card.

    The same inputs give the same bytes.

    Args:
        root: of the project, where `checkpoints/` lies.
        results: what the stages left behind there.
        folder: replaced whole, or not at all.
        repo_id: where it will be found; None says in the card that it is the folder itself.
        demos_repo_id: where its demonstrations will be found, if they are published.

    Raises:
        FileNotFoundError: a stage has not run.
        ValueError: the scores are of other tasks or weights, an adapter is of another base, or a file holds a token or
            a path of this machine.
    """
    checkpoints = Path(root) / "checkpoints"
    needed = {stage: path for stage, path in results.missing.items() if stage not in ("teach", "demos", "publish")}
    if needed:
        missing = "\n".join(f"  {path}: run `dvc repro {stage}`" for stage, path in needed.items())
        raise FileNotFoundError(f"a release needs what these stages write:\n{missing}")
    with atomic_folder(folder) as partial:
        _copy(checkpoints / "finetune/model", partial)
        _check_evaluated(partial, results)
        for task in results.adapted:
            _copy(checkpoints / "adapt" / task / "adapter", partial / "adapters" / task)
            _check_base(partial, task)
        if results.videos:
            best = max(results.videos, key=lambda entry: entry[0].score)
            shutil.copyfile(best[1], partial / "replay.mp4")
        write_json(partial / "metrics.json", _metrics(results))
        checkpoint = store.read_checkpoint(partial)
        _check_scores(checkpoint.specs, results)
        _write_eval_results(partial / ".eval_results", checkpoint.specs, results, repo_id, demos_repo_id)
        source = repo_id or Path(folder).as_posix()
        (partial / "README.md").write_text(_card(checkpoint, results, source, demos_repo_id), encoding="utf-8")
        refuse_private(partial, root)


def _check_evaluated(folder: Path, results: Results) -> None:
    assert results.scores is not None
    weights = sha256(folder / "model.safetensors")
    evaluated = results.scores.weights.get("finetune")
    if evaluated != weights:
        raise ValueError(
            f"checkpoints/finetune/model holds the weights {weights[:16]}, but the scores are of "
            f"{evaluated[:16] if evaluated else 'weights they do not name'}: only what was evaluated is released. "
            "Run `dvc repro evaluate`."
        )


def _check_base(folder: Path, task: str) -> None:
    base = store.read_adapter_task(folder / "adapters" / task).base
    if base != sha256(folder / "model.safetensors"):
        raise ValueError(
            f"the adapter for {task} was trained on the weights {base[:16]}, which are not those of this release. "
            f"Run `dvc repro adapt@{task}`."
        )


def _check_scores(specs: list[TaskSpec], results: Results) -> None:
    assert results.scores is not None
    for stage, mode in COLUMNS:
        for spec in specs:
            if spec.name not in results.scores.models.get(stage, {}).get(mode, {}):
                raise ValueError(
                    f"checkpoints/evaluate/metrics/scores.json has no score of {spec.name} for {stage}, {mode}: it is "
                    "of another run. Run `dvc repro evaluate`."
                )


def _write_eval_results(
    folder: Path, specs: list[TaskSpec], results: Results, repo_id: str | None, demos_repo_id: str | None
) -> None:
    """Write one file per way of acting, each with one entry per task.

    A score is filed under the data set of the demonstrations; without one under MMBench's, whose names and score rules
    the catalogue has. A task of the user's own is in neither, so it is then only in the card and in metrics.json.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    assert results.scores is not None
    folder.mkdir()
    for mode, how in (("plan", "planning"), ("policy", "policy alone")):
        scores = results.scores.models["finetune"][mode]
        entries = [
            EvalResultEntry(
                dataset_id=demos_repo_id or MMBENCH,
                task_id=spec.name,
                value=round(scores[spec.name].score, 4),
                source_url=f"https://huggingface.co/{repo_id}" if repo_id else None,
                source_name="Model card" if repo_id else None,
                notes=f"{how}, score in [0, 1], {len(scores[spec.name].scores)} episodes",
            )
            for spec in specs
            if demos_repo_id or spec.split != "custom"
        ]
        if entries:
            text = io.StringIO()
            YAML(typ="safe", pure=True).dump(eval_result_entries_to_yaml(entries), text)
            (folder / f"{how.replace(' ', '_')}.yaml").write_text(text.getvalue(), encoding="utf-8")


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


def _card(checkpoint: store.Checkpoint, results: Results, source: str, demos_repo_id: str | None) -> str:
    """Write the card of the release."""
    assert results.scores is not None
    title = source.rsplit("/", 1)[-1] if store.REPO_ID.fullmatch(source) else "Eft world model"
    planned = results.scores.models["finetune"]["plan"]
    data = ModelCardData(
        model_name=title,
        license="mit",
        library_name="eft",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "robotics", "world-model", "language-conditioned"],
        datasets=[demos_repo_id] if demos_repo_id else None,
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
    return render(
        TEMPLATE,
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
        demos_repo_id=demos_repo_id,
        num_parameters=sum(p.numel() for n, p in checkpoint.model.named_parameters() if not n.startswith("target_")),
        encoder=checkpoint.embeddings.encoder,
        machine={"cpu": "unknown", "cores": "unknown", "gpu": None} | latest.machine,
        versions=latest.versions,
        params=results.params.replace("``````", "` ` ` ` ` `"),
    )


def render(template: Path, **values: Any) -> str:
    """Fill in the template of a card; its filter `cell` makes any text safe within a table."""
    environment = jinja2.Environment(trim_blocks=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "interval": _interval}
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _cell(text: object) -> str:
    """Make a text safe within a cell of a Markdown table."""
    safe = " ".join(str(text).split())
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        safe = safe.replace(mark, written)
    return safe


def _interval(estimate: Estimate) -> str:
    return f"{estimate.score:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
