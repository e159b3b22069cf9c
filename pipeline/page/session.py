"""The loop behind the page: one agent in one environment, told what to do by whoever watches. It knows no browser."""

from __future__ import annotations

import contextlib
import math
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pipeline.page.forecast import Forecast, came, driven, forecasting
from pipeline.page.hand import Stick, steer, waits
from pipeline.page.record import FILM_SIZE, Recorder
from pipeline.page.understood import Understood, understand
from pipeline.play import told
from pipeline.tasks.physics import mujoco_of
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

if TYPE_CHECKING:
    from pipeline.agent import Agent

Mode = Literal["plan", "policy", "hand"]
MODES: tuple[Mode, ...] = ("plan", "policy", "hand")
LONGEST_SENTENCE = 300  # characters
_JOINERS = "\u200c\u200d"
_KEPT_SENTENCES = 8
_REST = 3.0  # seconds between episodes
_IDLE = 0.05  # seconds between looks at what is asked, while nothing moves
_SMOOTH = 0.1  # weight of the newest step in the mean times
_OBEYING = 0.2  # seconds after which what else is asked waits for a step, and for whoever ends the page
_MOST_ASKED = 200  # requests that wait; who asks for more is no person
# Steps of the simulator per second, where it has no clock of its own.
_RATES = {"box2d": 50.0, "atari": 15.0, "miniarcade": 25.0, "maniskill": 20.0}
_FAILURES = (ValueError, OSError, ImportError, RuntimeError, FloatingPointError)


class Said(NamedTuple):
    """A sentence, and what became of it."""

    text: str
    understood: Understood
    scene: str  # the task it was said in
    score: float  # at the end, or so far


class Session:
    """An agent at play. All but `ask` is called from the thread that runs it.

    Args:
        agent: acts in one environment.
        spec: the task it begins in.
        tasks: what can be chosen, by name.
        mode: who acts at first.
        seed: of the first episode; the next ones count up.

    Raises:
        ValueError, ImportError: the first task's simulator is not to be had.
    """

    def __init__(
        self, agent: Agent, spec: TaskSpec, tasks: Mapping[str, TaskSpec], mode: Mode = "plan", seed: int = 0
    ) -> None:
        self.agent, self.tasks = agent, dict(tasks)
        self.mode: Mode = mode
        self.paused, self.again, self.follow = False, True, True
        self.speed = 1.0  # of real time; infinity for as fast as it goes
        self.stick, self.waiting = Stick(), True
        self.problem: str | None = None
        self.refusals = 0  # requests that were not done, so far
        self.said: deque[Said] = deque(maxlen=_KEPT_SENTENCES)
        self.step_seconds, self.compute_seconds = 0.04, 0.0
        self._asked: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._seed, self._due, self._over_at = seed, 0.0, 0.0
        self.forecasts: list[Forecast | None] = []
        self.env: TaskEnv
        self.episode_number = 0
        self._open(spec)
        self._say(spec.instructions[0], Understood(spec.name, "own"), None)

    # --- from any thread ------------------------------------------------------------------------------------------

    def ask(self, what: Callable[[], object]) -> None:
        """Have something done between two steps. If it is refused, `problem` says why."""
        if self._asked.qsize() >= _MOST_ASKED:
            self.problem = f"{_MOST_ASKED} requests wait already: what was asked beyond them is not done."
            return
        self._asked.put(what)

    # --- what is asked --------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Give a sentence, in the middle of an episode or not. It may lead to the place of the task that it means."""
        text = clean(text)
        if not text:
            raise ValueError("the sentence is empty: say what is to be done, e.g. " + repr(self.spec.instructions[0]))
        understood = understand(self.agent, text, self.spec, here=not self.follow)
        meant = self.tasks.get(understood.task or "")
        if self.follow and meant is not None and place_of(meant) != place_of(self.spec):
            self._open(meant)
        self._say(text, understood, text)
        self.paused = False

    def choose(self, task: str) -> None:
        """Go to a task's own place, and do what its first text says."""
        if task not in self.tasks:
            raise ValueError(f"there is no task {task!r} to choose.")
        spec = self.tasks[task]
        self._open(spec)
        self._say(spec.instructions[0], Understood(spec.name, "own"), None)

    def act_by(self, mode: Mode) -> None:
        """Let the plan, the policy or a hand act from now on."""
        if self.mode == "hand" and self.agent.actor.past(None) is None:
            self.agent.reset(envs=[0])  # the last plan was for a state that a hand has left
        self.mode, self.stick = mode, Stick(grip=self.stick.grip)
        self._work_seconds = self.compute_seconds = 0.0

    def new_episode(self) -> None:
        """Begin the next episode."""
        self._begin(self.env)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, show: Callable[[Session], None], stop: Callable[[], bool], watched: Callable[[], bool]) -> None:
        """Play until `stop`, calling `show` again and again; stand still while nobody watches."""
        while not stop():
            self.obey()
            began = time.perf_counter()
            stepped = watched() and self.advance()
            show(self)
            if stepped:
                self._take_time(time.perf_counter() - began)
            else:
                time.sleep(min(max(self._due - time.monotonic(), 0.001), _IDLE) if not self.paused else _IDLE)

    def obey(self) -> None:
        """Do what was asked, as far as it does not take long. What is refused changes nothing; `problem` says why."""
        end = time.monotonic() + _OBEYING
        while not self._asked.empty() and time.monotonic() < end:
            self.problem = None
            self._guard(self._asked.get())

    def advance(self) -> bool:
        """Take the next step if it is due; return whether one was taken. One that fails pauses the episode."""
        try:
            due = self.ready()
        except _FAILURES as error:  # the next episode did not begin
            self.problem, self.paused = str(error), True
            return False
        if not due:
            return False
        self.paused = not self._guard(self.step)
        return not self.paused

    def _guard(self, what: Callable[[], object]) -> bool:
        """Do something, or say why not; return whether it was done. The page goes on in any case."""
        try:
            what()
            return True
        except _FAILURES as error:
            self.problem = str(error) or type(error).__name__
        except Exception as error:  # a mistake of our own: the terminal has the rest
            self.problem = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        self.refusals += 1
        return False

    def ready(self) -> bool:
        """Return whether the next step is due; at the end of an episode begin the next one, if that is wanted."""
        if self.paused:
            return False
        now = time.monotonic()
        if self.over:
            if not self.again or self.mode == "hand" or now < self._over_at + _REST:  # a hand may want to keep it
                return False
            self.new_episode()
        if self.mode == "hand" and self.waiting and waits(self.spec) and not self.stick.moved and not self._gripping:
            self._due = now
            return False
        return now >= self._due

    def step(self) -> None:
        """Take one step."""
        obs, mode = self.recorder.obs[-1], self.mode
        began = time.perf_counter()
        if mode == "hand":
            action, expected = steer(self.spec, self.stick), None
            self._gripped = self.stick.grip
            self._take_note(obs, action)
        else:
            with forecasting(self.agent) as forecasts:
                action = self._act(obs, mode == "plan")
            expected = next(iter(forecasts), None)
        self._smooth("compute_seconds", time.perf_counter() - began)
        before = self._clock()
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.step_seconds = self._length_of_step(before)
        self.recorder.add(action, obs, reward, terminated, info["success"], mode)
        self.forecasts.append(expected)
        self.said[-1] = self.said[-1]._replace(score=self.recorder.score)
        if terminated or truncated:
            self.over, self._over_at = True, time.monotonic()

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    # --- what there is to see -------------------------------------------------------------------------------------

    @property
    def realtime(self) -> float:
        """How many times real time the steps now take place, at most; below `speed` they are late."""
        return self.step_seconds / max(self._work_seconds, self.compute_seconds, 1e-6)

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return steps (n,), the return predicted at each, and the return that followed, as far as it is known."""
        lately: list[Forecast] = []  # since the last step of a hand, or under another sentence
        for one in reversed(self.forecasts):
            if one is None:
                break
            lately.insert(0, one)
        if not lately:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        first, values = len(self.forecasts) - len(lately), [one.value for one in lately]
        followed = came(values, self.recorder.rewards[first:], lately[-1].discount, self.recorder.terminated)
        return np.arange(first, first + len(lately), dtype=float), np.array(values), followed

    # --- inside ---------------------------------------------------------------------------------------------------

    def _act(self, obs: np.ndarray, plan: bool) -> np.ndarray:
        images: dict[str, Any] = {"picture": self.env.render()} if self.agent.vision else {}
        return self.agent.act(obs, plan=plan, **self._told, **images)

    def _take_note(self, obs: np.ndarray, action: np.ndarray) -> None:
        """Let an agent that reads earlier steps know what a hand has done, if it can act here at all."""
        if self.agent.actor.past(None) is not None:
            with driven(self.agent, action), contextlib.suppress(ValueError, OSError):
                self._act(obs, plan=False)

    def _open(self, spec: TaskSpec) -> None:
        """Go to a task's environment; the present one stays if that cannot be had, or does not begin."""
        size = self.agent.vision.size if self.agent.vision else FILM_SIZE
        env = make(spec, spec.obs_dim, spec.action_dim, size)
        before = getattr(self, "env", None)
        try:
            self._begin(env)
        except _FAILURES:
            env.close()
            raise
        self._work_seconds = self.compute_seconds = 0.0
        self._gripped = self.stick.grip
        if before is not None:
            before.close()

    def _begin(self, env: TaskEnv) -> None:
        obs, _ = env.reset(seed=self._seed)
        self.agent.reset(seed=self._seed)
        self.env, self.spec = env, env.task
        self.recorder = Recorder(env.task, self._seed, obs)
        self.over, self.forecasts = False, []
        self.episode_number += 1
        self._seed = (self._seed + 1) % 2**32
        self._due = 0.0

    def _say(self, text: str, understood: Understood, instruction: str | None) -> None:
        self.sentence, self.understood = text, understood
        self._told = told(self.agent, self.spec, instruction)
        meant = self.agent.tasks.get(understood.task or "")
        if instruction and meant and understood.acts_as_task and _body(meant) == _body(self.spec):
            self._told = {"task": meant.name}
        self.forecasts = [None] * len(self.forecasts)  # of another sentence
        self.said.append(Said(text, understood, self.spec.name, self.recorder.score if len(self.recorder) else 0.0))

    @property
    def _gripping(self) -> bool:
        """Whether the gripper key was pressed since the last step."""
        return self.stick.grip != self._gripped

    def _clock(self) -> float | None:
        """Return the simulator's own time in seconds, None where it has none."""
        found = mujoco_of(self.env)
        return None if found is None else float(found[1].time)

    def _length_of_step(self, before: float | None) -> float:
        now = self._clock()
        if before is not None and now is not None and now > before:
            return now - before
        simulator: Any = self.env.simulator
        metadata = getattr(getattr(simulator, "env", None), "metadata", {})
        rate = _RATES.get(self.spec.suite) or metadata.get("render_fps") or 25.0
        return self.spec.action_repeat / rate

    def _take_time(self, worked: float) -> None:
        """Say when the next step is due; a late one is not made up for."""
        self._smooth("_work_seconds", worked)
        wanted = 0.0 if math.isinf(self.speed) else self.step_seconds / self.speed
        self._due = max(self._due + wanted, time.monotonic() - wanted)

    def _smooth(self, name: str, newest: float) -> None:
        mean = getattr(self, name)
        setattr(self, name, newest if not mean else (1 - _SMOOTH) * mean + _SMOOTH * newest)


def clean(text: str) -> str:
    """Return one line of printable text of bounded length: a browser may send anything.

    What turns the order of letters round, or is not seen, goes too, but for the two characters that join letters and
    emoji.
    """
    seen = "".join(one if one.isprintable() or one in _JOINERS else " " for one in text[: 10 * LONGEST_SENTENCE])
    return " ".join(seen.split())[:LONGEST_SENTENCE].strip(_JOINERS + " ")


def _body(spec: TaskSpec) -> tuple[str, int, int]:
    return spec.embodiment, spec.obs_dim, spec.action_dim


def place_of(spec: TaskSpec) -> tuple[str, str]:
    """Return what tasks share that are done in the same place, so that one may be asked for in the midst of another."""
    if spec.suite in ("dmcontrol", "dmcontrol-ext"):
        return "dmcontrol", spec.env_id.split("/")[0]
    return spec.suite, "" if spec.suite == "robodesk" else spec.env_id
