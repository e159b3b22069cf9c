"""What a user must say for an import to be right: features, bounds of actions; and where episodes end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import MultiDiscrete

from pipeline.cli import main
from pipeline.data.demos import load_demos
from pipeline.importers import lerobot, minari, plain
from pipeline.importers.actions import as_corners
from pipeline.importers.episodes import Reading, Recorded, Report, Source, choose, first_end, import_episodes
from pipeline.run.run_dir import hold_output
from pipeline.tasks.spaces import actions_of
from pipeline.tasks.spec import SUCCESS, TaskSpec

DATA = Path(__file__).parents[1] / "data"
PENDULUM = ("pendulum", 3, 1, 6, "clip((return+15)/15,0,1)")


def make_spec(name: str, obs_dim: int, action_dim: int, length: int, score: str = SUCCESS) -> TaskSpec:
    return TaskSpec(
        name=name, suite="gymnasium", env_id="Pendulum-v1", embodiment="A body.", instructions=(f"do {name}",),
        obs_dim=obs_dim, action_dim=action_dim, action_repeat=1, episode_length=length, score=score,
    )  # fmt: skip


def write(source: Source, spec: TaskSpec, out: Path, reading: Reading | None = None) -> Report:
    return import_episodes(source, spec, "data", None, reading or Reading(), out)


# --- LeRobot ----------------------------------------------------------------------------------------------------------


def lerobot_folder(folder: Path, change=lambda table: table) -> Path:
    """The small data set that LeRobot 0.4.4 wrote, changed."""
    shutil.copytree(DATA / "lerobot", folder)
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return folder


def as_v21(folder: Path) -> Path:
    """The same data set as LeRobot 2.1 laid it out: one file per episode, the tasks' texts as lines of JSON."""
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    (folder / "data/chunk-000/file-000.parquet").unlink()
    for number in pc.unique(table["episode_index"]).to_pylist():
        rows = table.filter(pc.equal(table["episode_index"], number))
        pq.write_table(rows, folder / f"data/chunk-000/episode_{number:06d}.parquet")
    texts = pq.read_table(folder / "meta/tasks.parquet")
    name = next(name for name in texts.column_names if name != "task_index")
    lines = [json.dumps({"task_index": row["task_index"], "task": row[name]}) for row in texts.to_pylist()]
    (folder / "meta/tasks.jsonl").write_text("\n".join(lines))
    (folder / "meta/tasks.parquet").unlink()
    shutil.rmtree(folder / "meta/episodes")
    info = json.loads((folder / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1"}
    info["features"]["observation.images.top"] = {"dtype": "video", "shape": [48, 64, 3], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def test_lerobot_v21_gives_the_episodes_of_v3(tmp_path: Path) -> None:
    spec = make_spec("push", 6, 2, 9)
    write(lerobot.read_demos(DATA / "lerobot", spec, "push the block"), spec, tmp_path / "v3")
    old = as_v21(lerobot_folder(tmp_path / "set"))
    report = write(lerobot.read_demos(old, spec, "push the block"), spec, tmp_path / "v21")
    assert "observation.images.top" in report.ignored
    assert "meta/tasks.jsonl" in report.sha256
    for one, other in zip(load_demos(tmp_path / "v3", "push"), load_demos(tmp_path / "v21", "push"), strict=True):
        assert np.array_equal(one.obs, other.obs)
        assert np.array_equal(one.action, other.action)


def test_features_are_chosen_in_their_order(tmp_path: Path) -> None:
    spec, both = make_spec("push", 6, 2, 9), ["observation.environment_state", "observation.state"]
    source = lerobot.read_demos(DATA / "lerobot", spec, "push the block")
    write(source, spec, tmp_path / "all")
    write(lerobot.read_demos(DATA / "lerobot", spec, "push the block", both), spec, tmp_path / "turned")
    one, turned = (load_demos(tmp_path / name, "push")[0].obs for name in ("all", "turned"))
    assert np.array_equal(turned, np.concatenate([one[:, 4:], one[:, :4]], 1))
    narrow = make_spec("push", 4, 2, 9)
    report = write(lerobot.read_demos(DATA / "lerobot", narrow, "push the block", both[1:]), narrow, tmp_path / "one")
    assert "observation.environment_state" in report.ignored
    with pytest.raises(ValueError, match="no `observation.stat` to observe. Did you mean `observation.state`"):
        lerobot.read_demos(DATA / "lerobot", narrow, "push the block", ["observation.stat"])


def in_millimetres(table: pa.Table) -> pa.Table:
    """Actions from -17 to 24, as Meta-World's experts give them: 3.5 + 20.5 times what they were."""
    actions = np.stack(table["action"].to_numpy()) * 20.5 + 3.5
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.astype(np.float32).ravel()), 2)
    return table.set_column(table.column_names.index("action"), "action", column)


def test_actions_are_scaled_from_the_bounds_that_the_user_gives(tmp_path: Path) -> None:
    spec, folder = make_spec("push", 6, 2, 9), lerobot_folder(tmp_path / "set", in_millimetres)
    write(lerobot.read_demos(DATA / "lerobot", spec, "push the block"), spec, tmp_path / "before")
    source = lerobot.read_demos(folder, spec, "push the block")
    with pytest.raises(
        ValueError, match=r"its actions reach from .* \[-1, 1\](.|\n)*--action-low(.|\n)*--clip-actions"
    ):
        write(source, spec, tmp_path / "refused")
    source = lerobot.read_demos(folder, spec, "push the block")
    report = write(source, spec, tmp_path / "given", Reading(low=[-17], high=[24, 24]))
    assert any("-1 stands for -17 -17 and 1 for 24 24 (as you said)" in note for note in report.notes)
    pairs = zip(load_demos(tmp_path / "before", "push"), load_demos(tmp_path / "given", "push"), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.action, other.action, atol=1e-5)


def test_actions_are_scaled_by_the_data_or_cut(tmp_path: Path) -> None:
    spec, folder = make_spec("push", 6, 2, 9), lerobot_folder(tmp_path / "set", in_millimetres)
    write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path / "fit", Reading(of_data=True))
    actions = np.concatenate([episode.action for episode in load_demos(tmp_path / "fit", "push")])
    np.testing.assert_allclose([actions.min(0), actions.max(0)], [[-1, -1], [1, 1]], atol=1e-6)
    report = write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path / "cut", Reading(clip=True))
    assert any("of 9 lay outside these bounds and were cut to them" in note for note in report.notes)
    with pytest.raises(ValueError, match="--action-low has 3 numbers, expected one, or 2"):
        write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path / "x", Reading(low=[1, 2, 3]))


def of_actions(*actions: list) -> Source:
    """Episodes of these actions, one number each."""
    arrays = [np.array(one, np.float64).reshape(len(one), -1) for one in actions]
    episodes = [
        Recorded(number, np.zeros((len(one) + 1, 3)), one, np.ones(len(one)), False, None)
        for number, one in enumerate(arrays)
    ]
    return Source("made", [DATA / "newt_demos.pt"], episodes, len(episodes))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_spoils_its_own_episode_alone(bad: float, tmp_path: Path) -> None:
    spec, reading = make_spec(*PENDULUM), Reading(of_data=True)
    source = of_actions([-4.0, 0.0, 4.0], [1.0, bad, 6.0], [0.0, 2.0])
    report = write(source, spec, tmp_path, reading)
    assert report.left_out == [{"episode": 1, "reason": "its actions hold a value that is not finite, at step 1"}]
    assert any("-1 stands for -4 and 1 for 6" in note for note in report.notes)
    first, second = load_demos(tmp_path, "pendulum")
    np.testing.assert_allclose(first.action[:, 0], [-1, -0.2, 0.6], atol=1e-6)
    np.testing.assert_allclose(second.action[:, 0], [-0.2, 0.2], atol=1e-6)
    report = write(of_actions([0.5, bad], [0.5, 1.0]), spec, tmp_path / "told")
    assert report.left_out == [{"episode": 0, "reason": "its actions hold a value that is not finite, at step 1"}]


@pytest.mark.parametrize(
    ("actions", "reading", "message"),
    [
        ([[np.nan], [np.inf]], Reading(of_data=True), "at least one episode with finite actions of 1 values; of 2"),
        ([[-1.5e308, 1.5e308]], Reading(of_data=True), "too far apart to scale"),
        ([[0.0]], Reading(low=[-1.5e308], high=[1.5e308]), "expected finite numbers"),
        ([[0.0]], Reading(low=[-1], of_data=True), "leave --action-low and --action-high out"),
    ],
)
def test_bounds_that_cannot_be_scaled_from(actions: list, reading: Reading, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(of_actions(*actions), make_spec(*PENDULUM), tmp_path, reading)


def test_the_advice_on_many_parts_is_quick() -> None:
    names = [f"part{number:03d}" for number in range(120)]
    widths = dict.fromkeys(names, 2) | {"part118": 3, "part119": 4}
    before = time.perf_counter()
    with pytest.raises(ValueError, match=r"7\. Of this width: --features part118 part119\.$"):
        choose(names, widths, [], make_spec("push", 7, 2, 9))
    with pytest.raises(ValueError, match="No choice of up to 2 --features is as wide"):
        choose(names, widths, [], make_spec("push", 9, 2, 9))
    assert time.perf_counter() - before < 1
    with pytest.raises(ValueError, match=r"part000 part001 part002; or --features part000 part001 part003; or --fea"):
        choose(names[:30], widths, [], make_spec("push", 6, 2, 9))


@pytest.mark.parametrize("missing", [np.nan, None])
def test_a_flag_that_is_missing_is_no_end(missing: float | None) -> None:
    with pytest.raises(ValueError, match="`done` is missing at step 2"):
        first_end(4, over=np.zeros(4), done=np.array([0, 0, missing, 0]))


def test_frames_after_the_end_are_cut_and_reported(tmp_path: Path) -> None:
    def done_at_2(table: pa.Table) -> pa.Table:
        done = pa.array([frame >= 2 and number == 0 for frame, number in zip(*counts(table), strict=True)])
        table = table.drop_columns(["next.done"]) if "next.done" in table.column_names else table
        return table.append_column("next.done", done)

    def counts(table: pa.Table):
        return table["frame_index"].to_pylist(), table["episode_index"].to_pylist()

    spec, folder = make_spec("push", 6, 2, 9), lerobot_folder(tmp_path / "set", done_at_2)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    report = write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path)
    assert report.cut == [{"episode": 0, "reason": "2 steps after its end: `next.done` is true at step 2"}]
    assert [len(episode.action) for episode in load_demos(tmp_path, "push")] == [2, 5]
    assert json.loads((tmp_path / "push/import.json").read_text())["cut"] == report.cut


# --- Minari -----------------------------------------------------------------------------------------------------------


def minari_folder(folder: Path, change) -> Path:
    shutil.copytree(DATA / "minari/hdf5", folder)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        change(file["episode_1"])
    return folder


@pytest.mark.parametrize(("flag", "for_good"), [("terminations", True), ("truncations", False)])
def test_a_minari_episode_ends_where_it_says_so(flag: str, for_good: bool, tmp_path: Path) -> None:
    def end_at_3(group) -> None:
        group[flag][3:5] = True

    spec = make_spec(*PENDULUM)
    write(minari.read_demos(DATA / "minari/hdf5", spec), spec, tmp_path / "whole")
    report = write(minari.read_demos(minari_folder(tmp_path / "set", end_at_3), spec), spec, tmp_path / "cut")
    assert report.cut == [{"episode": 1, "reason": f"2 steps after its end: `{flag}` is true at step 3"}]
    whole, cut = (load_demos(tmp_path / name, "pendulum")[1] for name in ("whole", "cut"))
    assert (len(cut.action), cut.terminated) == (4, for_good)
    assert np.array_equal(cut.obs, whole.obs[:5])
    assert np.array_equal(cut.reward, whole.reward[:4])


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("rewards", np.zeros(7), "it has 7 rewards for 6 actions"),
        ("rewards", np.zeros((6, 2)), "its rewards have the shape (6, 2), expected one number"),
        ("truncations", np.array([0, np.nan, 0, 0, 0, 0]), "`truncations` is missing at step 1"),
    ],
)
def test_minari_columns_that_do_not_fit_the_steps(name: str, values: np.ndarray, reason: str, tmp_path: Path) -> None:
    def change(group) -> None:
        del group[name]
        group[name] = values

    spec = make_spec(*PENDULUM)
    report = write(minari.read_demos(minari_folder(tmp_path / "set", change), spec), spec, tmp_path)
    assert [one["episode"] for one in report.left_out] == [1]
    assert reason in str(report.left_out[0]["reason"])


def test_success_of_a_minari_episode_that_is_missing_is_not_known(tmp_path: Path) -> None:
    def change(group) -> None:
        group["infos/success"] = np.full(6, np.nan)
        group["truncations"][2] = True

    spec = make_spec(*PENDULUM)
    source = minari.read_demos(minari_folder(tmp_path / "set", change), spec)
    assert [one.success for one in source.episodes if isinstance(one, Recorded)][1] is None

    def shorten(group) -> None:
        group["infos/success"] = np.ones(2)
        group["truncations"][2] = True

    source = minari.read_demos(minari_folder(tmp_path / "short", shorten), spec)
    assert (1, "it cannot be read: `success` is told for 2 steps, and not for step -4") in list(source.episodes)


def test_lerobot_rewards_of_several_numbers_are_refused(tmp_path: Path) -> None:
    def doubled(table: pa.Table) -> pa.Table:
        reward = pa.array([[1.0, 2.0]] * table.num_rows)
        return table.set_column(table.column_names.index("next.reward"), "next.reward", reward)

    spec, folder = make_spec("push", 6, 2, 9), lerobot_folder(tmp_path / "set", doubled)
    with pytest.raises(ValueError, match="`next.reward` holds 2 numbers for each frame, expected one"):
        write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path)


def test_minari_data_without_terminations(tmp_path: Path) -> None:
    spec = make_spec(*PENDULUM)

    def forget(group) -> None:
        del group["terminations"]

    report = write(minari.read_demos(minari_folder(tmp_path / "set", forget), spec), spec, tmp_path)
    assert report.kept == 3
    assert any("no `terminations` in it" in note for note in report.notes)
    assert not load_demos(tmp_path, "pendulum")[1].terminated


def test_minari_actions_without_bounds_need_them_said(tmp_path: Path) -> None:
    spec, folder = make_spec(*PENDULUM), minari_folder(tmp_path / "set", lambda group: None)
    path = folder / "data/metadata.json"
    about = json.loads(path.read_text())
    space = json.loads(about["action_space"]) | {"low": [-float("inf")], "high": [float("inf")]}
    path.write_text(json.dumps(about | {"action_space": json.dumps(space)}))
    with pytest.raises(ValueError, match="expected finite numbers(.|\n)*--action-low"):
        write(minari.read_demos(folder, spec), spec, tmp_path / "refused")
    write(minari.read_demos(folder, spec), spec, tmp_path / "given", Reading(low=[-2], high=[2]))
    write(minari.read_demos(DATA / "minari/hdf5", spec), spec, tmp_path / "told")
    given, told = (load_demos(tmp_path / name, "pendulum")[0].action for name in ("given", "told"))
    assert np.array_equal(given, told)


def test_parts_of_a_minari_dict_are_chosen(tmp_path: Path) -> None:
    spec, folder = make_spec(*PENDULUM), tmp_path / "set"
    shutil.copytree(DATA / "minari/hdf5", folder)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for group in file.values():
            obs = group["observations"][()]
            del group["observations"]
            group["observations/state"], group["observations/goal"] = obs, np.ones((len(obs), 2))
    path = folder / "data/metadata.json"
    about = json.loads(path.read_text())
    box = json.loads(about["observation_space"])
    goal = box | {"shape": [2], "low": [-1, -1], "high": [1, 1]}
    space = {"type": "Dict", "subspaces": {"state": box, "goal": goal}}
    path.write_text(json.dumps(about | {"observation_space": json.dumps(space)}))
    with pytest.raises(ValueError, match="goal 2, state 3, 5 values together(.|\n)*--features state"):
        minari.read_demos(folder, spec)
    write(minari.read_demos(folder, spec, ["state"]), spec, tmp_path)
    assert load_demos(tmp_path, "pendulum")[0].obs.shape == (7, 3)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_cut_and_how_it_scaled(tmp_path: Path, monkeypatch, capsys) -> None:
    def end_at_3(group) -> None:
        group["truncations"][3] = True

    monkeypatch.chdir(tmp_path)
    minari_folder(tmp_path / "set", end_at_3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pendulum.yaml").write_text(
        "{name: pendulum, suite: gymnasium, env_id: Pendulum-v1, embodiment: A pole., instructions: [Swing up.], "
        'obs_dim: 3, action_dim: 1, action_repeat: 1, episode_length: 6, score: "clip((return+15)/15,0,1)"}'
    )
    command = ["import", "minari", "set", "--task", "pendulum", "--folder", "mine"]
    assert main([*command, "--action-low", "-4", "--action-high", "4", "--out", "wide"]) == 0
    shown = capsys.readouterr().out
    assert "cut: episode 1: 2 steps after its end: `truncations` is true at step 3" in shown
    assert "-1 stands for -4 and 1 for 4 (as you said)" in shown
    assert main([*command, "--features", "state", "--out", "x"]) == 2
    assert "one vector" in capsys.readouterr().err
    assert main(["import", "minari", "set/data/main_data.hdf5", *command[3:], "--out", "x"]) == 2
    assert "is a folder that holds data/metadata.json" in capsys.readouterr().err
    with hold_output(Path("y/pendulum"), "eft import"):
        assert main([*command, "--out", "y"]) == 2
    assert "another `eft import` is going to write into" in capsys.readouterr().err


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_become_the_actions_that_make_them() -> None:
    chosen = np.array([[0, 5], [1, 6], [1, 7]])
    corners = as_corners(chosen, [2, 3], [0, 5])
    actions = actions_of("it", MultiDiscrete([2, 3], start=[0, 5]))
    assert [actions.of_unit(row).tolist() for row in corners] == chosen.tolist()
    with pytest.raises(ValueError, match="choose from 5 to 7, expected whole numbers from 5 to 6"):
        as_corners(chosen, [2, 2], [0, 5])
    with pytest.raises(ValueError, match=r"the shape \(3, 2\), expected 1 choices each"):
        as_corners(chosen, [2], [0])


@pytest.mark.parametrize("form", ["hdf5", "parquet"])
def test_minari_choices_and_tuples(form: str, tmp_path: Path) -> None:
    folder, spec = tmp_path / "set", make_spec("pendulum", 6, 3, 6, "clip((return+15)/15,0,1)")
    shutil.copytree(DATA / "minari" / form, folder)
    actions, sides = np.array([2, 1, 1, 2, 3, 3]), np.array([0, 1, 2, 0, 1, 2, 0])
    if form == "hdf5":
        with h5py.File(folder / "data/main_data.hdf5", "a") as file:
            for group in file.values():
                obs = group["observations"][()]
                del group["observations"], group["actions"]
                group["observations/_index_0"], group["actions"] = obs, actions[: len(obs) - 1]
                group["observations/_index_1/side"] = sides[: len(obs)]
    else:
        for path in folder.glob("data/*/*.parquet"):
            table = pq.read_table(path)
            obs, count = table["observations"].combine_chunks(), table.num_rows
            inner = pa.StructArray.from_arrays([pa.array(sides[:count])], ["side"])
            table = with_columns(table, observations=pa.StructArray.from_arrays([obs, inner], ["0", "1"]))
            pq.write_table(with_columns(table, actions=pa.array(np.r_[actions, 0][:count])), path)
    path = folder / "data/metadata.json"
    about = json.loads(path.read_text())
    inner = {"type": "Dict", "subspaces": {"said": {"type": "Text"}, "side": {"type": "Discrete", "n": 3, "start": 0}}}
    observed = {"type": "Tuple", "subspaces": [json.loads(about["observation_space"]), inner]}
    spaces = {"observation": observed, "action": {"type": "Discrete", "n": 3, "start": 1}}
    path.write_text(json.dumps(about | {f"{name}_space": json.dumps(one) for name, one in spaces.items()}))
    report = write(minari.read_demos(folder, spec), spec, tmp_path)
    assert "_index_1/said" in report.ignored
    assert "actions: choices among 3, each as 1 for what was chosen and -1 for all else" in report.notes
    episode = load_demos(tmp_path, "pendulum")[0]
    assert (episode.action.argmax(1) + 1).tolist() == actions[: len(episode.action)].tolist()
    assert set(np.unique(episode.action)) == {-1, 1}
    assert episode.obs[:, 3:].argmax(1).tolist() == sides[: len(episode.obs)].tolist()
    with pytest.raises(ValueError, match="its actions choose among 3, pendulum has 1 action dims"):
        minari.read_demos(folder, make_spec("pendulum", 6, 1, 6))


def with_columns(table: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def test_whole_numbers_of_plain_and_lerobot_data_are_choices_of_a_task_that_takes_several_numbers(tmp_path) -> None:
    spec, chosen = make_spec("push", 6, 3, 20), np.arange(18) % 3
    folder = lerobot_folder(tmp_path / "set", lambda table: with_columns(table, action=pa.array(chosen)))
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["action"] |= {"dtype": "int64", "shape": [1]}
    (folder / "meta/info.json").write_text(json.dumps(info))
    report = write(lerobot.read_demos(folder, spec, "push the block"), spec, tmp_path / "one")
    assert "actions: choices among 3, each as 1 for what was chosen and -1 for all else" in report.notes
    assert load_demos(tmp_path / "one", "push")[0].action.argmax(1).tolist() == chosen[:4].tolist()
    for name, action in (("flat", chosen), ("column", chosen[:, None])):
        np.savez(tmp_path / f"{name}.npz", obs=np.zeros((19, 6)), action=action)
        source = plain.read_demos(tmp_path / f"{name}.npz", spec)
        write(source, spec, tmp_path / name, Reading(successful=True))
        assert load_demos(tmp_path / name, "push")[0].action.argmax(1).tolist() == chosen.tolist()
