"""Domains that are missing, broken, or work; nothing is imported before it is used."""

import subprocess
import sys

import pytest

from pipeline.tasks import availability, domains, registry
from pipeline.tasks.spec import Suite


def test_every_suite_has_a_domain_and_every_domain_an_extra():
    import tomllib
    from pathlib import Path
    from typing import get_args

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(domains.DOMAINS) == set(get_args(Suite))
    named = {domain.extra for domain in domains.DOMAINS.values()} - {None}
    assert named <= set(extras)
    assert set(extras["simulators"][0].removeprefix("eft[").removesuffix("]").split(",")) == named - {"maniskill"}


def test_reading_the_catalogue_imports_no_simulator():
    code = """
import sys
from pipeline.tasks import registry, vector, any_gymnasium
registry.load_catalogue()
simulators = "mujoco dm_control metaworld Box2D ale_py ogbench robodesk pygame mani_skill torch"
print(*[name for name in simulators.split() if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(
        domains.DOMAINS, "metaworld", domains.Domain("no_such_package.x:Y", "metaworld", ("no_such_package",))
    )
    spec = registry.get(["mw-reach"])[0]
    with pytest.raises(ImportError, match=r"metaworld needs `no_such_package`.*pip install 'eft\[metaworld\]'"):
        registry.make(spec, 39, 4)
    status = next(iter(availability.check([spec])))
    assert (status.state, status.num_tasks) == ("missing", 1)
    assert "pip install 'eft[metaworld]'" in status.detail


def test_what_cannot_run_here_is_named_all_at_once_with_what_to_do(monkeypatch):
    specs = registry.get(["pygame-pong", "mw-reach", "mw-push", "ms-pick-cube", "ms-pick-apple"])
    assert availability.unavailable(specs[:1]) == {}
    availability.require(specs[:1])

    class NeedsFiles:
        @staticmethod
        def require_files(env_id, env_kwargs):
            if "YCB" in env_id:
                raise domains.AssetsUnavailable("fetch the fruit")

    monkeypatch.setattr(domains, "adapter", lambda suite: NeedsFiles)
    monkeypatch.setattr(availability, "_start", lambda spec: f"{spec.name} started")
    monkeypatch.setitem(domains.DOMAINS, "maniskill", domains.Domain("no:No", "maniskill", (), more=True))
    monkeypatch.setitem(domains.DOMAINS, "metaworld", domains.Domain("no:No", "metaworld", ("no_such_package",)))
    with pytest.raises(ValueError, match="^3 of 5 tasks cannot run on this machine:\n") as error:
        availability.require(specs)
    assert str(error.value).splitlines()[1:3] == [
        "  2 tasks (mw-reach, mw-push): `no_such_package` not installed: pip install 'eft[metaworld]'",
        "  1 task (ms-pick-apple): fetch the fruit",
    ]

    def broken(spec):
        raise RuntimeError("no Vulkan device")

    monkeypatch.setattr(availability, "_start", broken)
    assert availability.unavailable(specs[3:]) == {
        "ms-pick-apple": "fetch the fruit",
        "ms-pick-cube": "no Vulkan device",
    }


def test_a_broken_package_shows_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "eft_broken_simulator.py").write_text("raise OSError('libfancy.so.7: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        domains.DOMAINS,
        "metaworld",
        domains.Domain("eft_broken_simulator:Y", "metaworld", ("eft_broken_simulator",)),
    )
    with pytest.raises(ImportError, match=r"metaworld is installed but does not start: OSError: libfancy\.so\.7"):
        registry.make(registry.get(["mw-reach"])[0], 39, 4)


@pytest.mark.slow
def test_every_installed_domain_starts():
    catalogue = registry.load_catalogue().values()
    states = {status.suite: status for status in availability.check(catalogue)}
    assert set(states) == {spec.suite for spec in catalogue}
    for suite, status in states.items():
        assert status.state == ("missing" if domains.missing(suite) else "works"), status


def test_a_domain_that_does_not_start_is_broken_with_its_error():
    spec = registry.parse_spec(
        {
            "name": "mine",
            "suite": "gymnasium",
            "env_id": "no_such_module:lab/Juggle-v0",
            "embodiment": "A hand.",
            "instructions": ["Juggle."],
            "obs_dim": 3,
            "action_dim": 1,
            "action_repeat": 1,
            "episode_length": 5,
            "score": "return/1000",
        },
        "test",
    )
    status = next(iter(availability.check([spec])))
    assert status.state == "broken"
    assert "No module named 'no_such_module'" in status.detail
    assert "Traceback" not in status.detail
