"""The command `eft`: what it prints, how it fails, and that it starts fast."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.cli import EXAMPLES, build_parser, main
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.language.head import HeadedEncoder
from pipeline.language.head_training import train_head
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.tasks import domains, registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.task_env import TaskEnv

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

ROOT = Path(__file__).parent.parent
EFT = (sys.executable, "-m", "pipeline.cli")
SWING = """\
name: {name}
suite: dmcontrol
env_id: pendulum/swingup
embodiment: A pole on a hinge.
instructions: ["{instruction}"]
obs_dim: 3
action_dim: 1
action_repeat: 2
episode_length: 5
score: return/1000
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder without params.yaml, with two tasks of five steps in `mine/`."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/swing.yaml").write_text(SWING.format(name="swing", instruction="Swing, but only for a moment."))
    (tmp_path / "mine/rest.yaml").write_text(SWING.format(name="rest", instruction="Rest, but only for a moment."))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(folder) -> Path:
    """A small untrained agent that knows `swing` and not `rest`."""
    torch.manual_seed(0)
    specs = registry.get(["swing"], folder / "mine")
    sizes = config.load(config.Model, ROOT / "tests/tiny.yaml")
    encoder = HashedNgrams(sizes.task_dim)
    embeddings = embed(encoder, ["swing"], [[specs[0].text()]], 1)
    mask = torch.zeros(1, sizes.action_dim)
    mask[0, 0] = 1
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.95]))
    agent = Agent(WorldModel(sizes), specs, embeddings, table, config.load(config.Planner, ROOT / "tests/tiny.yaml"))
    agent.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*EFT, *arguments], capture_output=True, text=True, timeout=60, **options)


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_and_the_list_of_tasks_load_nothing_heavy():
    code = """if True:
        import sys
        from pipeline.cli import main
        try:
            main(["--help"])
        except SystemExit:
            pass
        assert not {"torch", "numpy", "gymnasium", "pydantic"} & set(sys.modules), "eft --help"
        main(["tasks"])
        assert not {"torch", "dm_control", "metaworld", "transformers"} & set(sys.modules), "eft tasks"
    """
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_the_examples_in_the_help_are_commands():
    helps = [EXAMPLES] + [
        parser.format_help() for parser in build_parser()._subparsers._group_actions[0].choices.values()
    ]
    examples = re.findall(r"\beft [^&\n]*?(?=&&|\n|  )", "\n".join(text.split("example", 1)[1] for text in helps))
    assert len(examples) >= 10
    for example in examples:
        build_parser().parse_args(shlex.split(example)[1:])


# --- eft tasks --------------------------------------------------------------------------------------------------------


def test_json_lists_every_task_with_what_others_read(capsys):
    assert main(["tasks", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert {task["name"] for task in tasks} == set(registry.load_catalogue(ROOT / "my_tasks"))
    for task in tasks:
        assert {"name", "domain", "split", "action_dim", "episode_length"} <= set(task)
    walker = next(task for task in tasks if task["name"] == "walker-walk")
    assert (walker["domain"], walker["split"], walker["action_dim"], walker["episode_length"]) == (
        "dmcontrol", "train", 6, 500,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [("--suite", "metaworld", "suite"), ("--split", "train", "split"), ("--tag", "balancing", "tags")],
)
def test_filters_keep_what_they_name(capsys, option, value, key):
    main(["tasks", "--json", option, value])
    chosen = json.loads(capsys.readouterr().out)
    wanted = [spec.name for spec in registry.load_catalogue().values() if value in (getattr(spec, key), *spec.tags)]
    assert [task["name"] for task in chosen] == wanted
    assert wanted


def test_the_table_has_a_line_per_task(capsys):
    main(["tasks", "--tag", "balancing"])
    header, *rows, total = lines(capsys)
    assert header.split() == ["name", "suite", "split", "actions", "length", "instruction"]
    assert total.startswith(f"{len(rows)} tasks.")
    assert any(row.startswith("pendulum-swingup ") for row in rows)


def test_one_task_is_shown_with_all_its_texts(capsys):
    main(["tasks", "walker-walk"])
    out = capsys.readouterr().out
    (spec,) = registry.get(["walker-walk"])
    assert all(text in out for text in (*spec.instructions, spec.embodiment, "walker/walk", "from episode_length"))


def test_a_task_with_demonstrations_of_ones_own_is_shown_with_them(folder, capsys):
    shown = ["tasks", "mw-reach", "--folder", "mine"]
    assert main(shown) == 0
    assert "your own" not in capsys.readouterr().out
    file = Path("mine/demos/mw-reach/episodes.parquet")
    file.parent.mkdir(parents=True)
    file.touch()
    assert main(shown) == 0
    assert f"demonstrations  {file}: your own, so the expert plays none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "expert"),
    [
        ("mw-reach", "scripted; it demonstrates and labels"),
        ("og-point-maze", "path; it demonstrates and labels"),
        ("pendulum-spin", r"teacher, scores 0\.\d\d; it demonstrates and labels"),
        ("cup-spin", r"planner, scores 0\.99; it demonstrates, and cannot label"),
        ("swing", "nobody yet; `eft teach swing` trains a teacher"),
    ],
)
def test_who_demonstrates_and_labels_a_task_is_shown_with_it_and_in_a_list(folder, capsys, task, expert):
    own = ["--folder", "mine"]
    assert main(["tasks", task, *own]) == 0
    assert re.search(rf"expert +{expert}", capsys.readouterr().out)
    assert main(["tasks", task, "--experts", *own]) == 0
    _, row, _ = lines(capsys)
    assert row.split()[:2] == [task, expert.split()[0].strip(",;")]
    assert row.split()[-1] == ("yes" if "and labels" in expert else "no")


def test_own_tasks_come_from_the_folder_of_params(folder, capsys):
    (folder / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text().replace("my_tasks", "mine"))
    main(["tasks", "swing"])
    assert "Swing, but only for a moment." in capsys.readouterr().out
    (folder / "params.yaml").unlink()
    assert main(["tasks", "swing"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks", "walker-wlak"], "task `walker-wlak` is not known. Did you mean `walker-walk`"),
        (["tasks", "--suite", "dm_control"], "the suite `dm_control`. Did you mean `dmcontrol`"),
        (["tasks", "--split", "test"], "the split `test`. There are: extra, held_out, train"),
        (["tasks", "--folder", "nowhere"], "nowhere, does not exist"),
        (["check-task", "nothing.yaml"], "nothing.yaml does not exist"),
        (["check-task", "walker-wlak"], "Did you mean `walker-walk`"),
        (["preset", "mt500"], "there is no preset `mt500`"),
    ],
)
def test_errors_are_one_message_without_traceback(folder, capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"eft {arguments[0]}: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_debug_shows_where_an_error_comes_from(folder):
    with pytest.raises(ValueError, match="walker-wlak"):
        main(["tasks", "walker-wlak", "--debug"])


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{shlex.join(EFT)} tasks --json | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[\n", "")


# --- eft check-task ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_task_prints_what_it_found(folder, capsys):
    assert main(["check-task", "mine/swing.yaml", "--folder", "mine"]) == 0
    found = lines(capsys)
    assert len(found) >= 5
    assert all(line.startswith("ok    ") for line in found)


def test_check_task_fails_where_something_is_wrong(folder, capsys):
    task = folder / "mine/swing.yaml"
    task.write_text(task.read_text().replace("obs_dim: 3", "obs_dim: 4"))
    assert main(["check-task", "mine/swing.yaml"]) == 2
    assert any(line.startswith("FAIL  build: ") and "Write 3" in line for line in lines(capsys))


def test_check_task_knows_the_widths_of_params(folder, capsys):
    (folder / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text().replace("my_tasks", "mine"))
    assert main(["check-task", "quadruped-walk"]) == 2
    assert any("wider than model." in line for line in lines(capsys))


# --- eft act ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["--policy-only"], ["--instruction", "Do nothing."]])
def test_act_plays_and_scores_episodes(checkpoint, capsys, how):
    arguments = ["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--episodes", "2", "--seed", "7", *how]
    assert main(arguments) == 0
    first, second, mean = lines(capsys)
    assert re.fullmatch(r"episode with seed 7: score \d\.\d{3}, return -?\d+\.\d, 5 steps", first)
    assert second.startswith("episode with seed 8: ")
    assert mean.endswith("over 2 episodes of swing")
    main(arguments)
    assert lines(capsys)[0] == first


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["Swign, but only for a momnet."], r"is understood as swing \(probability 0\.\d\d; next: there is no other\)"),
        (["asdf qwer"], r"means none of the known tasks \(probability \d\.\d\d; nearest: swing 0\.\d\d\)"),
        (["asdf qwer", "--literal"], None),
    ],
)
def test_act_prints_what_was_understood(checkpoint, capsys, told, said):
    agent = Agent.from_pretrained(checkpoint)
    settings = config.Head(dim=32, pieces=512, typos=2, epochs=20, batch_size=8, lr=3e-3, dropout=0.1)
    encoder = HashedNgrams(32)
    head = HeadedEncoder(encoder, train_head(encoder, list(agent.tasks.values()), settings, seed=1))
    agent.embeddings = embed(head, ["swing"], [[agent.tasks["swing"].text()]], 1)
    agent.save_pretrained(checkpoint)
    capsys.readouterr()
    assert main(["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--instruction", *told]) == 0
    first, *more = lines(capsys)
    assert len(more) == (2 if said else 1)
    assert re.search(said or "^episode with seed 0", first)


@pytest.mark.parametrize("device", ["cuda:99", "no-such"])
def test_act_on_a_device_that_is_not_there_says_so(checkpoint, capsys, device):
    assert main(["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--device", device]) == 2
    assert f"eft act: `device` is {device}, but torch sees no" in capsys.readouterr().err
    assert main(["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--device", "cpu"]) == 0


def test_act_takes_the_text_encoder_from_a_folder(checkpoint, capsys, monkeypatch):
    other = HashedNgrams(4096)
    monkeypatch.setattr("pipeline.language.encoder.load_encoder", lambda name: {"mine/encoder": other}[name])
    told = ["--instruction", "Do nothing.", "--encoder", "mine/encoder"]
    assert main(["act", str(checkpoint), "--task", "swing", "--folder", "mine", *told]) == 2
    assert "but hashed-ngrams-4096 was loaded" in capsys.readouterr().err


def test_act_in_a_task_the_checkpoint_does_not_know_says_so(checkpoint, capsys):
    assert main(["act", str(checkpoint), "--task", "rest", "--folder", "mine"]) == 0
    note, episode, _ = lines(capsys)
    assert "was not trained on rest: it is told what the task says, 'A pole on a hinge. Rest, but" in note
    assert episode.startswith("episode with seed 0: ")


def test_act_puts_an_adapter_on_in_its_own_task_alone(checkpoint, folder, capsys, monkeypatch):
    agent = Agent.from_pretrained(checkpoint)
    (rest,) = registry.get(["rest"], "mine")
    agent.add_task(rest, agent.embed(rest), 0.95)
    agent.create_adapter("rest", ["policy"], rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    agent.save_adapter("adapter", "rest")

    acting, seen = Agent.act, []
    monkeypatch.setattr(Agent, "act", lambda *args, **told: seen.append(acting(*args, **told)) or seen[-1])

    def play(task: str, *more: str) -> tuple[list[str], np.ndarray]:
        seen.clear()
        assert main(["act", str(checkpoint), "--task", task, "--folder", "mine", "--policy-only", *more]) == 0
        return lines(capsys), np.stack(seen)

    (*episodes, _), plain = play("swing")
    (note, *same, _), others = play("swing", "--adapter", "adapter")
    assert note == "adapter is for rest: swing is played by the checkpoint as it was before"
    assert same == episodes
    assert np.array_equal(others, plain)
    assert not np.array_equal(play("rest", "--adapter", "adapter")[1], play("rest")[1])


@pytest.mark.slow
def test_act_films(checkpoint, folder):
    try:
        env = registry.make(*registry.get(["swing"], "mine"), 3, 1, render_size=32)
        env.reset(seed=0)
        env.render()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    env.close()
    assert (
        main(["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--episodes", "2", "--video", "a.mp4"])
        == 0
    )
    stream = av.open("a.mp4").streams.video[0]
    assert (stream.width, stream.height, stream.frames) == (224, 224, 2 * (5 + 1))


@pytest.mark.slow
def test_act_goes_on_where_nothing_can_be_drawn(checkpoint, folder, capsys, monkeypatch):
    def render(self):
        raise RenderingUnavailable("cannot draw: MUJOCO_GL=osmesa needs libOSMesa.so")

    arguments = ["act", str(checkpoint), "--task", "swing", "--folder", "mine", "--policy-only"]
    assert main(arguments) == 0
    played = lines(capsys)
    monkeypatch.setattr(TaskEnv, "render", render)
    assert main([*arguments, "--video", "a.mp4"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == played
    assert "act: no video: cannot draw: MUJOCO_GL=osmesa" in captured.err
    assert not Path("a.mp4").exists()


def test_act_names_a_checkpoint_that_is_not_there(folder, capsys):
    assert main(["act", "checkpoints/none", "--task", "swing", "--folder", "mine"]) == 2
    assert "checkpoints/none" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_act_wants_a_count_of_episodes(capsys, count):
    with pytest.raises(SystemExit) as error:
        main(["act", "x", "--task", "y", f"--episodes={count}"])
    assert error.value.code == 2
    assert "expected a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_quietly(checkpoint, folder):
    command = [*EFT, "act", str(checkpoint), "--task", "swing", "--folder", "mine", "--episodes", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout.readline().startswith("episode with seed 0")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


# --- eft preset -------------------------------------------------------------------------------------------------------


def test_preset_writes_params_and_says_what_changed(folder, capsys):
    (folder / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text())
    (folder / "presets").mkdir()
    (folder / "presets/slow.yaml").write_text("# A smaller step.\nlearning: {lr: 1e-5}\n")
    assert main(["preset"]) == 0
    listed = lines(capsys)
    assert "slow         A smaller step." in listed
    assert any(row.startswith("mt50 ") for row in listed)  # those of Eft, from any folder
    (folder / "presets/mt50.yaml").write_text("# Mine.\nlearning: {lr: 1e-5}\n")
    assert main(["preset"]) == 0
    assert "mt50         Mine." in lines(capsys)
    assert main(["preset", "slow"]) == 0
    assert lines(capsys)[0] == "learning.lr: 0.0003 -> 1e-05"
    assert config.load(config.Learning).lr == 1e-5
    assert main(["preset", "slow"]) == 0
    assert lines(capsys) == ["params.yaml already holds preset `slow`: nothing changed."]


def test_preset_installed_leaves_out_what_cannot_run_here_and_says_why(folder, capsys, monkeypatch):
    (folder / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text())
    (folder / "presets").mkdir()
    (folder / "my_tasks").mkdir()
    (folder / "presets/arms.yaml").write_text(
        "tasks: {train: [mw-reach, pygame-pong, mw-push], held_out: [pygame-cowboy], pairs: [[mw-reach, mw-push]]}\n"
    )
    monkeypatch.setitem(domains.DOMAINS, "metaworld", domains.Domain("no:No", "metaworld", ("no_such_package",)))
    assert main(["preset", "arms", "--installed"]) == 0
    assert lines(capsys)[:2] == [
        "left out: 2 tasks cannot run on this machine:",
        "  2 tasks (mw-reach, mw-push): `no_such_package` not installed: pip install 'eft[metaworld]'",
    ]
    tasks = config.load(config.Tasks)
    assert (tasks.train, tasks.held_out, tasks.pairs) == (("pygame-pong",), ("pygame-cowboy",), ())
    assert main(["preset", "--installed"]) == 0
    assert lines(capsys) == ["params.yaml already holds what can run here: nothing changed."]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", "ä \\u2026"), ("ascii", "\\xe4 \\u2026"), ("utf-8", "ä …")]
)
def test_a_task_file_is_utf8_and_what_a_terminal_lacks_is_spelled_out(folder, monkeypatch, encoding, shown):
    text = SWING.format(name="swing", instruction="Hin ä …")
    (folder / "mine/swing.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors begin a file
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LC_ALL", "C")
    command = [sys.executable, "-X", "utf8=0", "-m", "pipeline.cli", "tasks", "swing", "--folder", "mine"]
    found = subprocess.run(command, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert f"instructions    Hin {shown}" in found.stdout.decode(encoding)
