import pytest

from pipeline.tasks.spec import SCORE_FORMS, SUCCESS, parse_spec

VALUES = {
    "name": "a-task",
    "suite": "gymnasium",
    "env_id": "Pendulum-v1",
    "embodiment": "A pole hangs on a motor.",
    "instructions": ["Swing it up.", "Raise it."],
    "obs_dim": 3,
    "action_dim": 1,
    "action_repeat": 1,
    "episode_length": 200,
    "score": "return/1000",
}


def test_the_last_of_several_phrasings_is_kept_for_evaluation():
    spec = parse_spec({**VALUES, "instructions": ["Go.", "Walk.", "Move on."]}, "test")
    assert spec.training_texts() == [spec.text(0), spec.text(1)]
    assert spec.unseen_text() == spec.text(2)
    alone = parse_spec({**VALUES, "instructions": ["Go."]}, "test")
    assert alone.training_texts() == [alone.unseen_text()]


def spec(**changes):
    return parse_spec({**VALUES, **changes}, "a.yaml")


@pytest.mark.parametrize(
    ("rule", "episode_return", "score"),
    [
        ("return/1000", 250, 0.25),
        ("return/1000", 1000.0001, 1.0),
        ("return/600", -3, 0.0),
        ("clip(return/250,0,1)", 125, 0.5),
        ("clip((return+3)/6,0,1)", -3, 0.0),
        ("clip((return+3)/6,0,1)", 0, 0.5),
        ("clip((return-10.5)/2,0,1)", 11.5, 0.5),
        ("clip(return,0,5000)/5000", 7000, 1.0),
        ("clip(return, 0, 250)/250", 25, 0.1),
        ("1+clip(return,-50,0)/50", -40, 0.2),
        ("1+clip(return,-50,0)/50", -90, 0.0),
    ],
)
def test_score_rules(rule, episode_return, score):
    assert spec(score=rule).evaluate(episode_return, success=False) == pytest.approx(score)


def test_success_rule_ignores_the_return():
    assert spec(score=SUCCESS).evaluate(-5, success=True) == 1.0
    assert spec(score=SUCCESS).evaluate(5000, success=False) == 0.0


@pytest.mark.parametrize("rule", SCORE_FORMS)
def test_the_forms_that_errors_recommend_are_valid(rule):
    assert spec(score=rule).score == rule


@pytest.mark.parametrize(
    "rule",
    [
        "clip((return-min)/(max-min),0,1)",
        "return/0",
        "return/-5",
        "clip(return,0,500)/250",
        "__import__('os')",
        "return",
        "1+clip(return,-50,0)/40",
    ],
)
def test_other_rules_are_refused_with_the_known_forms(rule):
    with pytest.raises(ValueError, match=r"a\.yaml: .*score rule"):
        spec(score=rule)


def test_text_joins_embodiment_and_instruction():
    assert spec().text() == "A pole hangs on a motor. Swing it up."
    assert spec().text(1) == "A pole hangs on a motor. Raise it."
    with pytest.raises(IndexError, match="a-task: phrasing 2 asked for, it has 2"):
        spec().text(2)


def test_missing_and_unknown_keys_are_all_named_with_near_matches():
    values = {**VALUES, "action_dims": 1}
    del values["action_dim"]
    with pytest.raises(ValueError, match="`action_dim` is missing") as caught:
        parse_spec(values, "mine.yaml")
    assert "`action_dims` is not a key of a task. Did you mean `action_dim`" in str(caught.value)
    assert all(line.startswith("mine.yaml: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Not A Name"},
        {"suite": "arcade"},
        {"instructions": []},
        {"obs_dim": 0},
        {"discount": 1.0},
        {"split": "test"},
        {"episode_length": "long"},
        {"instructions": "Swing it up."},
    ],
)
def test_values_out_of_bounds_are_named(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}"):
        spec(**change)


def test_a_file_that_is_not_a_mapping_is_refused():
    with pytest.raises(ValueError, match=r"mine\.yaml: expected the keys name, suite"):
        parse_spec(["name"], "mine.yaml")


@pytest.mark.parametrize("bounds", [[-2, 3.5], [-2, [3.5]], [[-2.0], [3.5]]])
def test_limits_of_actions_survive_being_written(bounds):
    limited = spec(action_bounds=bounds)
    assert parse_spec(limited.to_dict(), "again") == limited


def test_a_task_without_limits_of_actions_is_written_as_before_them():
    assert "action_bounds" not in spec().to_dict()
    assert parse_spec(spec().to_dict(), "again") == spec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_bounds": [2, -2]}, "every lowest number must be below its highest"),
        ({"action_bounds": [-1, float("inf")]}, "both finite"),
        ({"action_bounds": [[-1, -1], 1]}, r"has 2 lowest and 1 highest numbers; expected .* action_dim = 1 of each"),
        ({"action_bounds": [-1, 1], "suite": "metaworld"}, "`action_bounds` are for the suite gymnasium"),
        ({"action_bounds": [-1]}, "action_bounds"),
    ],
)
def test_limits_of_actions_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)
