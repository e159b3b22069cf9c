"""The page: every section from made-up results, nothing loaded from outside, texts escaped, missing stages named."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from pipeline import report
from pipeline.files import sha256, write_json
from pipeline.report import write_report
from pipeline.results import Curve
from pipeline.run.metrics import FILE
from pipeline.video import write_video

pytestmark = pytest.mark.slow  # whole pages are drawn

TASKS = ["walker-walk", "walker-run", "mw-reach", "mw-drawer-open"]
HELD_OUT = ["mw-drawer-close", "mw-window-close"]
PARAMS = """\
seed: 1
tasks:
  train: [{train}]
  held_out: [{held_out}]
  pairs: [[walker-walk, walker-run]]  # <only the instruction> differs
  weights: {{}}
  folder: my_tasks
evaluate:
  {{episodes: 10, phrasing: canonical, confidence: 0.95, bootstrap_samples: 100, video_size: 64, video_every: 1,
    video_fps: 20, open_loop_steps: [8, 48], processes: 1, open_loop_horizon: 48, open_loop_episodes: 2}}
"""
SECTIONS = [
    "curves",
    "scores",
    "open-loop",
    "instructions",
    "words",
    "adaptation",
    "demonstrations",
    "videos",
    "cost",
    "parameters",
    "origin",
]


def write_inputs(root: Path, size: int = 32) -> None:
    """Write made-up results of every stage, in the forms the stages use."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(PARAMS.format(train=", ".join(TASKS), held_out=", ".join(HELD_OUT)))
    demos = {
        task: {"kept": 20, "attempts": 21 + i, "score": 0.99 - 0.03 * i, "seconds": 9.0 + 3 * i, "method": "expert"}
        for i, task in enumerate(TASKS + HELD_OUT)
    }
    write_json(root / "datasets/demos.json", {"tasks": demos, "seconds": 95.0})
    checkpoints = root / "checkpoints"
    write_json(checkpoints / "teach.json", {"seed": 1, "seconds": 0.0, "tasks": {}})
    for stage, seconds, steps in (("pretrain", 410.0, 8000), ("finetune", 720.0, 24000)):
        write_json(checkpoints / stage / "metrics/summary.json", summary(stage, seconds))
        write_curves(checkpoints / stage / "metrics", steps, seconds, rng)
    write_json(checkpoints / "evaluate/metrics/summary.json", summary("evaluate", 130.0))
    write_json(checkpoints / "evaluate/metrics/scores.json", evaluation(rng))
    index = []
    for task in TASKS:
        film(checkpoints / f"evaluate/videos/{task}.mp4", size, rng)
        index.append({"task": task, "instruction": f"Robot, {task}!", "score": 0.8, "file": f"{task}.mp4"})
    write_json(checkpoints / "evaluate/videos/index.json", index)
    for i, task in enumerate(HELD_OUT):
        film(checkpoints / f"adapt/{task}/videos/adapted.mp4", size, rng)
        write_json(checkpoints / f"adapt/{task}/metrics/summary.json", adaptation(task, 0.6 * (1 - i), 45.0))
    write_json(checkpoints / "publish/metrics/summary.json", summary("publish", 3.0))


def summary(stage: str, seconds: float) -> dict:
    return {
        "stage": stage,
        "seconds": seconds,
        "peak_memory_mb": 1800 + seconds,
        "commit": "0123456789abcdef",
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "machine": {"cpu": "Some CPU @ 2 GHz", "cores": 2, "memory_gb": 7.8, "gpu": None, "system": "Linux x86_64"},
    }


def write_curves(folder: Path, steps: int, seconds: float, rng: np.random.Generator) -> None:
    grid = np.linspace(0, steps, 7).astype(int)
    curves = {f"eval/{task}": 0.9 * (1 - np.exp(-grid / steps * rng.uniform(1, 5))) for task in TASKS}
    curves["eval/score"] = np.mean(list(curves.values()), axis=0)
    curves |= {f"online/{task}": 0.8 * curves[f"eval/{task}"] for task in TASKS}
    curves["time/seconds"] = grid / steps * seconds
    for i, name in enumerate(("total", "consistency")):
        curves[f"train/{name}"] = 30 * np.exp(-grid / steps * (2 + i)) * rng.uniform(0.9, 1.1, len(grid))
    for name, values in curves.items():
        write_curve(folder, name, grid, values)


def write_curve(folder: Path, name: str, steps: Iterable[float], values: Iterable[float]) -> None:
    write_rows(folder, [{"step": int(step), name: float(value)} for step, value in zip(steps, values, strict=True)])


def write_rows(folder: Path, rows: Iterable[dict]) -> None:
    """Add rows to the metrics of a folder."""
    with (folder / FILE).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def estimate(score: float, spread: float = 0.06) -> dict:
    return {"score": score, "low": max(0.0, score - spread), "high": min(1.0, score + spread)}


def evaluation(rng: np.random.Generator) -> dict:
    models = {
        model: {
            mode: {
                task: estimate(base + rng.uniform(-0.15, 0.1)) | {"scores": [0.5] * 10, "episode_return": 100.0}
                for task in TASKS
            }
            for mode, base in modes.items()
        }
        for model, modes in {
            "pretrain": {"policy": 0.55, "plan": 0.62},
            "finetune": {"policy": 0.78, "plan": 0.86},
        }.items()
    }
    mean = {
        model: {
            mode: estimate(float(np.mean([task["score"] for task in tasks.values()])), 0.03)
            for mode, tasks in modes.items()
        }
        for model, modes in models.items()
    }
    matrix = [[0.91, 0.22], [0.35, 0.84]]
    bound = {"low": [[s - 0.05 for s in row] for row in matrix], "high": [[s + 0.05 for s in row] for row in matrix]}
    pairs = [{"tasks": TASKS[:2], "mode": mode, "scores": matrix} | bound for mode in ("policy", "plan")]
    blind = {steps: estimate(0.8 - steps / 100, 0.03) for steps in (8, 48)}
    open_loop = [{"steps": steps, "tasks": dict.fromkeys(TASKS, e), "mean": e} for steps, e in blind.items()]
    chosen = dict.fromkeys(TASKS, "plan") | {TASKS[0]: "policy"}
    said = [
        {"text": "Fly & fall", "kind": "indirect", "score": 0.1, "understood": None, "probability": 0.9},
        {"text": "wlak", "kind": "typos", "score": 0.8, "understood": TASKS[0], "probability": 0.99},
    ]
    ratio = {"own": 0.8, "other": 0.45, "ratio": 0.5625, "low": 0.2, "high": 0.9}
    none = {"own": 0.0, "other": 0.0, "ratio": None, "low": None, "high": None}
    words = {"episodes": 3, "tasks": {TASKS[0]: ratio | {"sentences": said}, TASKS[1]: none | {"sentences": said[:1]}}}
    words["mean"] = ratio
    found = {"models": models, "mean": mean, "chosen": chosen, "pairs": pairs, "open_loop": open_loop}
    return found | {"words": words}


def adaptation(task: str, gain: float, seconds: float) -> dict:
    curve = [
        {"env_steps": 500 * i, "updates": 1000 + 125 * i, "seconds": 9.0 * i, "score": 0.2 + gain * (1 - 0.5**i)}
        for i in range(5)
    ]
    return summary("adapt", seconds) | {
        "task": task,
        "zero_shot": estimate(0.2) | {"scores": [0.2] * 10},
        "adapted": estimate(0.2 + gain) | {"scores": [0.2 + gain] * 10},
        "curve": curve,
        "adapter_parameters": 41_216,
        "base_parameters": 1_204_733,
        "demos": 5,
    }


def film(path: Path, size: int, rng: np.random.Generator) -> None:
    """A ball on a slope of some colour."""
    y, x = np.mgrid[:size, :size] / size
    background = (rng.uniform(40, 200, 3) * (0.6 + 0.4 * y[..., None])).astype(np.uint8)
    frames = []
    for t in np.linspace(0, 2 * np.pi, 12):
        ball = (x - 0.5 - 0.3 * np.cos(t)) ** 2 + (y - 0.5 - 0.3 * np.sin(t)) ** 2 < 0.02
        frames.append(np.where(ball[..., None], np.uint8(255), background))
    write_video(path, frames, fps=12)


class Page(HTMLParser):
    """Collects what a browser would see: ids, tags with attributes, texts; checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input", "source"})

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: dict[str, str] = {}  # by section
        self._open: list[str] = []
        self._section = "header"
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.text[self._section] = self.text.get(self._section, "") + " "
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data

    def words(self, section: str) -> str:
        return re.sub(r"\s+", " ", self.text[section])

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def make_page(root: Path) -> tuple[str, Page]:
    write_report(root, root / "report.html")
    html = (root / "report.html").read_text()
    return html, Page(html)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Results that tests read; those that change them take `changed`."""
    root = tmp_path_factory.mktemp("results")
    write_inputs(root)
    return root


@pytest.fixture
def changed(root, tmp_path) -> Path:
    """A copy of the results, to change."""
    return Path(shutil.copytree(root, tmp_path / "changed"))


@pytest.fixture(scope="module")
def page(root) -> tuple[str, Page]:
    return make_page(root)


def write_experts(folder: Path, layers: dict[str, list[list[list[float]]]], every: int = 1000) -> None:
    """Log, for each layer, row and task, the shares of its experts; none where a task had no rows of data."""
    for layer, rows in layers.items():
        for number, shares in enumerate(rows, 1):
            part = 1 / sum(map(bool, shares))
            table = {task: [part * one for one in share] for task, share in zip(TASKS, shares, strict=True) if share}
            write_rows(folder, [{"step": every * number, f"expert_use/{layer}": table}])


def write_teachers(checkpoints: Path) -> None:
    """Two teachers, of which one has lost its curve, as in a clone that has not pulled what DVC keeps."""
    notes = {"standard_error": 0.012, "episodes": 40, "steps": 600_000, "trained_steps": 1_000_000, "recipe": {}}
    scores = {TASKS[0]: 0.93, HELD_OUT[0]: 0.5}
    taught = {task: {**notes, "score": score, "seconds": 200.0} for task, score in scores.items()}
    write_json(checkpoints / "teach.json", {"seed": 1, "seconds": 0.0, "tasks": taught})
    curve = [{"steps": n * 10**5, "seconds": 20.0 * n, "score": 1 - 0.8**n, "kl": 0.02} for n in range(1, 11)]
    write_json(checkpoints / "teach" / TASKS[0] / "curve.json", curve)


@pytest.fixture(scope="module")
def full_page(root, tmp_path_factory) -> tuple[str, Page]:
    """With what only some runs have: stages of growth, experts, clusters of tasks, tasks that nobody demonstrated."""
    full = Path(shutil.copytree(root, tmp_path_factory.mktemp("full") / "results"))
    folder = full / "checkpoints/finetune/metrics"
    write_curve(folder, "scaling/stage", [0, 800, 1600], [0, 1, 2])
    for task, values in zip(TASKS, ([0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]), strict=False):
        write_curve(folder, f"solved/{task}", [0, 800, 1600], values)
    finetune = json.loads((folder / "summary.json").read_text())
    write_json(folder / "summary.json", finetune | {"labels": {TASKS[0]: "scripted", TASKS[1]: "teacher"}})
    even, one, other = [0.5, 0.5], [1.0, 0.0], [0.25, 0.75]
    lines = [[even] * 4, [one, even, [], other], [one, one, one, other]]
    write_experts(folder, {"dynamics": lines, "q.0": lines[::-1]})
    cosines = [[1, 0.1, 0.7, -0.4], [0.1, 1, 0.2, 0.6], [0.7, 0.2, 1, 0.0], [-0.4, 0.6, 0.0, 1]]
    found = {
        "tasks": TASKS,
        "cluster": [0, 1, 0, 1],
        "order": [1, 3, 2, 0],
        "similarity": cosines,
        "silhouette": {"2": 0.5, "3": 0.25},
    }
    write_json(full / "checkpoints/pretrain/metrics/clusters.json", found)
    learned = full / "datasets/picture_vectors/autoencoder"
    learned.mkdir(parents=True)
    write_json(learned / "training.json", {"shown": TASKS[:2], "error": {TASKS[0]: 0.0123}})
    imsave(learned / "reconstructions.png", np.zeros((4, 4, 3)))
    write_json(learned / "clusters.json", found | {"cluster": [0, 0, 0, 1], "order": [2, 1, 0, 3], "silhouette": {}})
    write_teachers(full / "checkpoints")
    demos = json.loads((full / "datasets/demos.json").read_text())
    write_json(full / "datasets/demos.json", demos | {"missing": {"fish-swim": "it has <no> expert"}})
    return make_page(full)


def test_every_section_is_there_and_linked(page):
    _, page = page
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == [f"#{name}" for name in SECTIONS]
    assert not any("has not run" in text for text in page.text.values())


def test_ids_are_unique_and_references_within_svg_resolve(page):
    html, page = page
    outside_defs = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag not in ("path", "clippath", "g")]
    assert len(outside_defs) == len(set(outside_defs))
    ids = set(page.attributes("id"))
    for reference in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', html):
        assert reference in ids


def test_nothing_is_loaded_from_outside(page):
    html, page = page
    for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
        for value in page.attributes(name):
            assert value.startswith(("#", "data:")), f"{name}={value[:60]}"
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_videos_are_inside(page, root):
    _, page = page
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    assert len(sources) == len(TASKS) + len(HELD_OUT)
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)
    for task in TASKS:
        assert f"{task} · 0.80“Robot, {task}!”" in page.words("videos")


def test_the_headline_tells_the_means(page, root):
    _, page = page
    scores = json.loads((root / "checkpoints/evaluate/metrics/scores.json").read_text())
    header = page.words("header")
    for model, name in (("pretrain", "Pretrained"), ("finetune", "Finetuned")):
        for mode, how in (("policy", "policy alone"), ("plan", "with planning")):
            mean = scores["mean"][model][mode]
            assert f"{name}, {how} {mean['score']:.2f} {mean['low']:.2f}–{mean['high']:.2f}" in header
    seconds = 95 + 410 + 720 + 130 + 2 * 45 + 3
    assert f"{seconds // 60} min {seconds % 60:02d} s" in header
    assert f"{20 * len(TASKS)} demonstrations" in header  # those of held-out tasks were not pretrained on


def test_every_task_has_its_four_bars_at_the_right_places(page, root):
    _, page = page
    scores = json.loads((root / "checkpoints/evaluate/metrics/scores.json").read_text())
    bars = [attrs["style"] for tag, attrs in page.tags if attrs.get("class", "").startswith("bar ")]
    assert len(bars) == 4 * (len(TASKS) + 1)
    expected = scores["models"]["finetune"]["plan"][TASKS[-1]]
    assert bars[-1] == f"--score:{expected['score']:.4f};--low:{expected['low']:.4f};--high:{expected['high']:.4f}"


def test_how_the_agent_acts_where_it_may_choose_is_marked_once_per_task(page):
    html, page = page
    assert html.count("so acts the agent") == len(TASKS)
    alone = html.split(f"<b>{TASKS[0]}</b>")[1].split("<b>")[0]
    marked = [bar for bar in alone.split('<div class="bar ')[1:] if "so acts the agent" in bar]
    assert [bar.split('"')[0] for bar in marked] == ["finetune policy"]


def ways(tasks: Sequence[str]) -> dict:
    """What `benchmarks.learning` writes."""
    means = {"control": 0.71, "own": 0.73, "own_minus_control": 0.02, "labels": 0.86, "labels_minus_control": 0.15}
    found = {name: {"score": value, "low": value - 0.01, "high": value + 0.01} for name, value in means.items()}
    seeds = {"control": [0.7, 0.8], "own": [0.6, 0.8], "labels": [0.9, 0.95]}
    scores = {way: dict.fromkeys(tasks, each) for way, each in seeds.items()}
    measured = {"command": "python -m benchmarks.learning <x>", "commits": ["0123abc+changes"], "machine": {}}
    return measured | {"policy": found, "plan": found, "tasks": scores}


def test_ways_of_finetuning_stand_beside_each_other_in_the_mean_and_task_by_task(changed):
    assert "ways" not in make_page(changed)[1].text
    write_json(changed / "checkpoints/ways.json", ways(TASKS))
    html, page = make_page(changed)
    words = page.words("ways")
    assert '<a href="#ways">' in html
    assert "python -m benchmarks.learning <x> , at commit 0123abc+changes, finetuned" in words
    assert "intervals over 2 seeds" in words
    assert "(control) 0.710 0.70–0.72" in words
    assert "labelled by experts 0.860 0.85–0.87 0.860 0.85–0.87 0.150 0.14–0.16" in words
    for task in TASKS:
        assert f"{task} 0.75 0.70 0.80 0.70 0.60 0.80 0.93 0.90 0.95" in words
    assert html.count("<b>0.93</b>") == len(TASKS)
    assert "<b>0.75</b>" not in html


def test_ways_that_were_run_with_one_seed_and_not_all_of_them(changed):
    content = ways(TASKS)
    content["tasks"] = {way: {task: [0.5] for task in TASKS} for way in ("control", "labels")}
    for mode in ("policy", "plan"):
        content[mode] = {name: e for name, e in content[mode].items() if "own" not in name}
    write_json(changed / "checkpoints/ways.json", content)
    words = make_page(changed)[1].words("ways")
    assert "intervals over 1 seed and" in words
    assert "Task Control With labels " in words
    assert f"{TASKS[0]} 0.50 0.50 {TASKS[1]}" in words


def test_ways_of_finetuning_other_tasks_are_not_taken_for_these(changed):
    write_json(changed / "checkpoints/ways.json", ways(["mw-reach"]))
    words = make_page(changed)[1].words("ways")
    assert "on other tasks than these: python -m benchmarks.learning <x> compares them" in words
    assert "0.8" not in words


@pytest.mark.parametrize(("left_out", "message"), [("command", "`command`: Field required"), ("", "not valid JSON")])
def test_a_damaged_file_of_ways_says_what_brings_it_back(changed, left_out, message):
    file = changed / "checkpoints/ways.json"
    content = ways(TASKS)
    if left_out:
        del content[left_out]
        write_json(file, content)
    else:
        file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"ways\.json.*{message}.*`git checkout .*ways\.json`"):
        make_page(changed)


def asked(root: Path) -> dict:
    """What `benchmarks.probe` writes of the finetuned checkpoint of these results."""
    figures = ("advantage_q", "advantage_model", "value_share", "plan_distance", "policy_score", "plan_score")
    row = {**dict.fromkeys(figures, 0.25), "q_over_return": 1.04, "policy_return": 0.9, "plan_return": None}
    measured = {"command": "python -m benchmarks.probe <all>", "commit": "0123abc", "machine": {}}
    return measured | {"run": sha256(root / "checkpoints/finetune/metrics/summary.json"), "tasks": {TASKS[0]: row}}


def test_what_a_checkpoint_was_asked_is_shown_until_another_run_replaces_it(changed):
    title = "What its values and plans are worth"
    assert title not in make_page(changed)[0]
    file = changed / "checkpoints/probe.json"
    write_json(file, asked(changed))
    _, page = make_page(changed)
    words = page.words("asked")
    assert "python -m benchmarks.probe <all> asked the finetuned checkpoint" in words
    assert f"{TASKS[0]} 1.04 0.25 0.25 0.25 0.25 0.25 0.25 0.90 –" in words
    write_json(file, asked(changed) | {"run": "of another run"})
    words = make_page(changed)[1].words("asked")
    assert "Another checkpoint was asked" in words
    assert "1.04" not in words
    content = asked(changed)
    del content["tasks"][TASKS[0]]["value_share"]
    write_json(file, content)
    with pytest.raises(ValueError, match=r"probe.json: `tasks.walker-walk.value_share`: Field required"):
        make_page(changed)


def test_instruction_tables_have_one_row_per_instruction(page):
    _, page = page
    words = page.words("instructions")
    assert words.count("told “Robot, walker-run!” 0.350.30–0.40 0.840.79–0.89") == 2
    assert words.count("It follows the instruction:") == 2


def test_other_words_are_beside_own_ones_with_the_sentences_that_failed(page, changed):
    _, page = page
    words = page.words("words")
    assert f"{TASKS[0]} 0.80 0.45 0.56 0.20–0.90 “Fly & fall” 0.10, understood as no task" in words
    assert "wlak" not in words
    assert f"{TASKS[1]} 0.00 0.00 –" in words
    path = changed / "checkpoints/evaluate/metrics/scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "words": None}))
    assert "evaluate.words_episodes in params.yaml is 0" in make_page(changed)[1].words("words")


def test_adaptation_says_what_was_gained_and_what_was_not(page):
    _, page = page
    words = page.words("adaptation")
    assert "0.20 → 0.80" in words
    assert "The intervals lie apart." in words
    assert "0.20 → 0.20" in words
    assert "It is not better than zero-shot." in words
    assert "41,216 parameters: 3.4 % of the model's" in words


def test_demonstrations_costs_parameters_and_origin(page):
    _, page = page
    assert "mw-drawer-close held out expert 20 25 0.87 21 s" in page.words("demonstrations")
    assert "finetune 12 min 00 s 2.5 GiB" in page.words("cost")
    assert "# <only the instruction> differs" in page.words("parameters")
    for text in ("Some CPU @ 2 GHz", "0123456789abcdef", "torch 2.13.0", "7.8 GiB"):
        assert text in page.words("origin")


def test_there_is_a_chart_of_each_curve(page):
    _, page = page
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert labels.count("Score against time") == 2
    assert "Score against environment steps" in labels
    assert "Score against steps without feedback" in labels
    assert {f"{task}: score against environment steps" for task in HELD_OUT} <= set(labels)
    assert {*TASKS, "consistency", "total"} <= set(labels)


def test_solved_tasks_and_stages_are_drawn_where_the_model_grew(full_page, page):
    title = "When tasks were solved, and stages began"
    assert title not in page[1].attributes("aria-label")
    html, grown = full_page
    assert title in grown.attributes("aria-label")
    chart = html[html.index(title) :].split("</svg>")[0]
    assert all(word in chart for word in (TASKS[0], "stage 1", "stage 2"))
    assert "stage 0" not in chart


@pytest.mark.parametrize(
    ("values", "spans"),
    [([0, 0, 0], []), ([1, 1, 0], [(0, 2)]), ([1, 0, 1], [(0, 1), (2, 5)]), ([0, 1, 1], [(1, 5)])],
)
def test_spans_last_to_the_evaluation_that_ends_them(values, spans):
    assert report._spans(Curve([0, 1, 2], values), 5) == spans


def test_the_same_results_give_the_same_page(page, root):
    assert make_page(root)[0] == page[0]


def test_texts_are_escaped(changed):
    evil = "<script>alert('x')</script>\"&"
    index = changed / "checkpoints/evaluate/videos/index.json"
    videos = json.loads(index.read_text())
    for video in videos:
        video["instruction"] = evil
    write_json(index, videos)
    demos = changed / "datasets/demos.json"
    demos.write_text(demos.read_text().replace('"expert"', '"<img src=x onerror=alert(1)>"'))
    write_curve(changed / "checkpoints/finetune/metrics", 'train/a"<b>$x_$', [0, 5], [1, 2])
    html, page = make_page(changed)
    assert "<script" not in html
    assert "<img" not in html
    assert evil in page.text["videos"]
    assert evil in page.text["instructions"]
    assert 'a"<b>$x_$' in page.attributes("aria-label")


def test_a_fresh_clone_gives_a_page_that_names_every_stage(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS.format(train=", ".join(TASKS), held_out=", ".join(HELD_OUT)))
    results = write_report(tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "Eft has not trained yet" in page.words("header")
    stages = ["teach", "demos", "pretrain", "finetune", "evaluate", "publish", *(f"adapt@{task}" for task in HELD_OUT)]
    assert sorted(results.missing) == sorted(stages)
    for stage in stages:
        assert f"The stage {stage} has not run" in page.words("cost")
    for stage, section in {"demos": "demonstrations", "pretrain": "curves", "evaluate": "open-loop"}.items():
        assert f"dvc repro {stage} makes it" in page.words(section)


def test_teachers_have_a_chart_and_a_row_where_there_are_any(full_page, page):
    assert "teachers" not in page[1].text
    _, page = full_page
    words = page.words("teachers")
    assert f"{TASKS[0]} 0.93 ± 0.01 40 600,000 steps 1,000,000 steps 3 min 20 s" in words
    assert f"{HELD_OUT[0]} held out 0.50 ± 0.01" in words
    labels = page.attributes("aria-label")
    assert f"Teacher of {TASKS[0]}" in labels
    assert f"Teacher of {HELD_OUT[0]}" not in labels
    assert "#teachers" in page.attributes("href")
    assert "teach, on one core 6 min 40 s" in page.words("cost")


def test_it_is_said_which_experts_labelled_what(full_page, page):
    assert f"where it went: {TASKS[0]} (scripted), {TASKS[1]} (teacher)." in full_page[1].words("curves")
    assert "Labels of experts where it went: off." in page[1].words("curves")


def test_tasks_without_demonstrations_are_named_with_the_reason(full_page):
    assert "fish-swim: it has <no> expert" in full_page[1].words("demonstrations")


def test_a_missing_stage_is_named_where_it_belongs_and_the_rest_is_shown(changed):
    gone = {
        "checkpoints/finetune/metrics/summary.json": ("curves", "finetune"),
        "checkpoints/adapt/mw-drawer-close/metrics/summary.json": ("adaptation", "adapt@mw-drawer-close"),
    }
    for path in (*gone, "checkpoints/evaluate/videos/index.json"):
        (changed / path).unlink()
    _, page = make_page(changed)
    for path, (section, stage) in gone.items():
        assert page.words(section).count(f"The stage {stage} has not run: there is no {path}") == 1
    for section in set(SECTIONS) - {"curves", "adaptation", "cost"}:
        assert "has not run" not in page.words(section)
    assert "made no videos: evaluate.video_size is 0" in page.words("videos")
    assert "0.20 → 0.20" in page.words("adaptation")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("evaluate/metrics/scores.json", '{"models": {}, "pairs": []}', r"scores.json: `mean`: Field required"),
        ("adapt/mw-drawer-close/metrics/summary.json", "{", "not valid JSON .* run `dvc repro adapt@mw-drawer-close`"),
        ("teach.json", '{"tasks": {"a": {"score": 1}}}', "teach.json: `tasks.a.standard_error`: Field required"),
        ("pretrain/metrics/metrics.jsonl", '{"step": 0, "eval/score": "x"}\n', "line 1: `eval/score` is not a number"),
        ("pretrain/metrics/metrics.jsonl", '{"step": 0}\n{\n', "metrics.jsonl, line 2: expected a JSON object"),
    ],
)
def test_a_file_of_another_form_is_named_and_no_page_is_left(changed, path, content, message):
    (changed / "checkpoints" / path).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(changed, changed / "out/report.html")
    assert not list(changed.glob("out/*"))


def test_the_page_shows_which_tasks_use_which_experts(full_page, page):
    assert "experts" not in page[1].text
    html, page = full_page
    words = page.words("experts")
    assert "Finetuning online dynamics" in words
    assert "Pretraining" not in words
    assert "of all tasks: expert 0 81 % , expert 1 19 % . Most used: walker-walk expert 0 (100 %)" in words
    assert "mw-drawer-open expert 1 (75 %)." in words
    assert "q.0" in words
    section = html[html.index('<section id="experts">') :].split("</section>")[0]
    assert len(re.findall(r'xlink:href="data:image/png;base64,', section)) == section.count("<image") == 4
    assert "#experts" in page.attributes("href")


@pytest.mark.parametrize("table", [1, [], {}, {"walker-walk": ["x"]}, {"walker-walk": [1], "walker-run": [0.5, 0.5]}])
def test_a_broken_table_of_experts_is_named(changed, table):
    write_rows(changed / "checkpoints/pretrain/metrics", [{"step": 9000, "expert_use/dynamics": table}])
    with pytest.raises(ValueError, match=r"metrics.jsonl.*`expert_use/"):
        make_page(changed)


def test_what_pictures_are_observed_through_is_shown_with_its_clusters(full_page, page):
    assert 'id="pictures"' not in page[0]
    page, _ = full_page
    section = page[page.index('<section id="pictures">') : page.index('<section id="demonstrations">')]
    assert f"{TASKS[0]} 0.012." in " ".join(section.split())
    assert f'alt="Frames above their reconstructions: {TASKS[0]}, {TASKS[1]}"' in section
    assert section.count("data:image/png;base64") == 2  # the frames, and the similarities in their chart
    assert re.findall(r"<li>(.*?)</li>", section) == [", ".join(TASKS[row] for row in (2, 1, 0)), TASKS[3]]
    assert "silhouette" not in section


def test_clusters_of_tasks_are_drawn_where_there_are_any(full_page, page):
    assert "clusters" not in page[1].text
    page, _ = full_page
    section = page[page.index('<section id="clusters">') : page.index('<section id="pictures">')]
    assert re.findall(r"<li>(.*?)</li>", section) == ["walker-run, mw-drawer-open", "mw-reach, walker-walk"]
    assert "0.50 for 2" in section
    labels = re.findall(r">(walker-walk|walker-run|mw-reach|mw-drawer-open)</text>", section)
    assert labels == 2 * ["walker-run", "mw-drawer-open", "mw-reach", "walker-walk"]
    assert "-.40" in section
    assert section.count("data:image/png;base64") == 1
