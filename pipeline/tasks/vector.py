"""Many environments stepping together, in this process or in a few workers with many environments each."""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from pydantic import TypeAdapter

from pipeline.tasks import domains
from pipeline.tasks.env_group import MAX_FAILURES, Arrays, EnvGroup, Widths, num_bytes, view
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.worker import DONE, RESET, RESTORE, STEP

TIMEOUT = 60.0  # seconds that a step may take, unless `runtime.env_timeout` says otherwise
_PATIENCE = 10  # ... and so many times as long a start: simulators compile, read and fetch what they need
_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """What one step of N environments gives."""

    obs: np.ndarray  # (N, O) float32; first observation of the next episode where this one ended
    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    final_obs: np.ndarray  # (N, O) float32; true last observation where the episode ended, else `obs`
    success: np.ndarray  # (N,) bool, of the step just taken
    lost: np.ndarray  # (N,) bool; the episode failed and must not be used, `obs` is the first of another one
    image: np.ndarray  # (N, P, P, 3) uint8 RGB of `obs`; P is 0 where nothing is drawn
    final_image: np.ndarray  # (N, P, P, 3) uint8 RGB of `final_obs` where the episode ended; undefined elsewhere
    label: np.ndarray  # (N, A) float32, what the expert would have done in the state before the step; (N, 0) where ...
    # ... there are no labels; undefined of tasks that are not labelled, and of environments that rested or were lost


class WorkerError(RuntimeError):
    """A worker failed; the message holds the task and the worker's own traceback."""


class TaskFailure(RuntimeError):
    """A task keeps failing; the message names it and holds its last error."""


class _Death(Exception):
    """A worker process ended, or was ended because it stood still; the message says how."""


class VectorEnv:
    """N environments, which start the next episode by themselves.

    Episode e of environment i is determined by (seed, numbers[i], e) and the actions alone: results do not depend on
    `num_workers`, nor on which process of a run an environment runs.

    An environment that fails in the middle of an episode (it or its expert raises, or returns NaN or a wrong shape)
    begins its next one, and the step's `lost` says so. So do all environments of a worker process that dies or stands
    still; the process is started again. Both are logged. A task that fails time and again without finishing an episode
    between stops the run.

    Args:
        specs: the task of each environment; repeat one to have several of it.
        obs_dim: padded width of observations.
        action_dim: padded width of actions.
        seed: seed of all episodes.
        num_workers: processes that step them; 0 = in this process.
        numbers: number of each environment in the whole run, where this vector is a part of it; None = 0 to N - 1.
        image_size: P, pixels of a side of the images that are drawn of every observation; 0 draws none.
        labels: experts that are asked in every state of their tasks, where the environments are; None asks nobody.
        timeout: seconds that a step may take in a worker, before it counts as standing still; a reset may take ten
            times as long.
        first_steps: fewest agent steps of episode 0 of each environment, which is truncated after a random number of
            them, so that the environments do not all begin new episodes at the same step; None: it is whole.

    Raises:
        ValueError: a task cannot be built (with `num_workers=0`).
        WorkerError: a task cannot be built in a worker.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        numbers: Sequence[int] | None = None,
        image_size: int = 0,
        labels: Labels | None = None,
        timeout: float = TIMEOUT,
        first_steps: int | None = None,
    ) -> None:
        n = len(specs)
        if n == 0:
            raise ValueError("VectorEnv needs at least one task.")
        self.specs, self.labels, self._timeout = tuple(specs), labels, timeout
        self._failures = np.zeros(n, np.int64)  # of each environment, since it last finished an episode
        self._workers: list[_Worker] = []
        self._memory: int | None = None
        self._group: EnvGroup | None = None
        numbers = list(range(n) if numbers is None else numbers)
        numbered = list(enumerate(specs))
        widths = Widths(n, obs_dim, action_dim, image_size, action_dim if labels else 0)
        self._under_way = False
        self._dead: dict[int, _Death] = {}  # workers that could not get the command under way
        if num_workers == 0:
            self._arrays = view(bytearray(num_bytes(widths)), widths)
            self._group = EnvGroup(numbered, self._arrays, seed, numbers, labels, first_steps)
            return
        memory = self._memory = _shared_memory(num_bytes(widths))
        self._arrays = view(mmap.mmap(memory, 0), widths)
        order = self._order = {"widths": widths, "seed": seed, "numbers": numbers, "first_steps": first_steps}
        order["labels"] = labels.to_orders() if labels else None
        try:
            for hand in assign(specs, min(num_workers, n)):
                self._workers.append(_Worker([numbered[index] for index in hand], order, memory))
            for worker in self._workers:
                worker.wait(None)
        except _Death as death:
            self.close()
            raise WorkerError(str(death)) from None
        except BaseException:
            self.close()
            raise

    @property
    def episodes(self) -> np.ndarray:
        """(N,) int64, the number of the episode that each environment is in."""
        return self._arrays.episode.copy()

    @property
    def image(self) -> np.ndarray:
        """The images of the current observations, (N, P, P, 3) uint8 RGB."""
        return self._arrays.image.copy()

    def reset(self, playing: np.ndarray | None = None) -> np.ndarray:
        """Start episode 0 of each environment; return the current observations, (N, O) float32.

        Args:
            playing: (N,) bool, the environments that begin; the others go on from where they are. None for all.
        """
        which = np.ones(len(self.specs), dtype=bool) if playing is None else playing
        self._failures[which] = 0
        self._arrays.episode[which] = 0
        self._arrays.playing[:] = which
        if self._group:
            self._group.reset()
            self._count(self._group.failures)
        else:
            self._command(RESET)
        return self._arrays.obs.copy()

    def step(self, action: np.ndarray) -> Step:
        """Take one agent step in each environment: `begin_step` and `end_step` in one."""
        self.begin_step(action)
        return self.end_step()

    def begin_step(self, action: np.ndarray, playing: np.ndarray | None = None) -> None:
        """Let the workers take one agent step in each environment, and return without waiting for them.

        With `num_workers=0` the step is taken by `end_step`.

        Args:
            action: (N, A) in [-1, 1].
            playing: (N,) bool, the environments that take it; the others rest and go on from there another time. None
                for all.

        Raises:
            RuntimeError: the step before was not ended.
        """
        if self._under_way:
            raise RuntimeError("a step was begun and not ended: call `end_step` first.")
        if action.shape != self._arrays.action.shape:
            raise ValueError(f"expected actions of shape {self._arrays.action.shape}, got {action.shape}.")
        self._arrays.action[:] = action
        self._arrays.playing[:] = True if playing is None else playing
        if not self._group:
            self._send(STEP)
        self._under_way = True

    def end_step(self) -> Step:
        """Wait for the step that was begun and return what it gave.

        Raises:
            TaskFailure: a task keeps failing.
            WorkerError: a worker's environments cannot be built anew.
        """
        if not self._under_way:
            raise RuntimeError("no step was begun: call `begin_step` first.")
        self._under_way = False
        if self._group:
            self._group.step()
            self._count(self._group.failures)
        else:
            self._await_all(STEP)
        step = Step(*(getattr(self._arrays, name).copy() for name in Step._fields))
        self._failures[step.terminated | step.truncated] = 0
        return step

    def restore(self, episodes: np.ndarray, actions: Sequence[np.ndarray]) -> np.ndarray:
        """Go into the middle of known episodes by replaying what was done in them: exact to the bit.

        Args:
            episodes: (N,) number of the episode of each environment, `self.episodes` of back then.
            actions: N arrays (L_i, A), the actions taken since that episode began.

        Returns:
            The current observations, (N, O) float32.

        Raises:
            ValueError: the actions do not belong to these episodes (WorkerError from a worker).
        """
        n, width = self._arrays.action.shape
        played = [np.ascontiguousarray(one, np.float32).reshape(-1, width) for one in actions]
        if len(episodes) != n or len(played) != n:
            raise ValueError(f"expected {n} episodes and {n} records, got {len(episodes)} and {len(played)}.")
        self._arrays.episode[:] = episodes
        if self._group:
            self._group.restore(self.episodes.tolist(), played)
            self._count(self._group.failures)
        else:
            self._command(RESTORE, played)
        return self._arrays.obs.copy()

    def close(self) -> None:
        """Release the simulators and end every worker; calling it again does nothing."""
        if self._group:
            self._group.close()
        for worker in self._workers:
            worker.connection.close()  # which tells it to end
        for worker in self._workers:
            worker.reap()
        if self._memory is not None:
            os.close(self._memory)
        self._workers, self._group, self._memory = [], None, None

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self, command: bytes, played: Sequence[np.ndarray] = ()) -> None:
        if self._under_way:
            raise RuntimeError("a step was begun and not ended: call `end_step` first.")
        self._send(command, played)
        self._await_all(command)

    def _send(self, command: bytes, played: Sequence[np.ndarray] = ()) -> None:
        if not self._workers:
            raise RuntimeError("this VectorEnv is closed.")
        self._dead.clear()
        try:
            for number, worker in enumerate(self._workers):
                try:
                    worker.send(command)
                    if command == RESTORE:
                        worker.send_record(self._arrays.episode, played)
                except _Death as death:
                    self._dead[number] = death
        except BaseException:
            self.close()
            raise

    def _await_all(self, command: bytes) -> None:
        dead = self._dead
        try:
            for number, worker in enumerate(self._workers):
                if number not in dead:
                    try:
                        self._count(worker.wait(self._arrays, self._timeout))
                    except _Death as death:
                        dead[number] = death
            if command == RESTORE and dead:  # nothing is under way yet that could go on without them
                raise WorkerError(str(next(iter(dead.values()))))
            for number, death in dead.items():
                self._revive(number, death)
        except BaseException:  # also Ctrl-C: an answer left unread would be taken for the next one
            self.close()
            raise

    def _revive(self, number: int, death: _Death) -> None:
        """Start a dead worker again, its environments in their next episodes; as often as it takes, within limits."""
        old = self._workers[number]
        indices, arrays = old.indices, self._arrays
        while True:
            busy = [index for index in indices if arrays.beats[index] % 2]
            tasks = ", ".join(sorted({self.specs[index].name for index in busy})) or "no task"
            _log.warning(
                "%s It was busy with %s. It is started again; its %d environments begin new episodes, what they were "
                "in the middle of is lost.",
                death,
                tasks,
                len(indices),
            )
            self._count([(index, str(death)) for index in busy or indices], log=False)
            arrays.beats[indices], arrays.starting[indices] = 0, False
            try:
                assert self._memory is not None
                new = self._workers[number] = _Worker(old.specs, self._order, self._memory)
                new.wait(None)
                arrays.episode[indices] += 1
                new.send(RESTORE)
                new.send_record(arrays.episode, [np.zeros((0, arrays.action.shape[1]), np.float32)] * len(self.specs))
                self._count(new.wait(arrays, self._timeout))
                break
            except _Death as again:
                death = again
        for results in (arrays.reward, arrays.terminated, arrays.truncated, arrays.success):
            results[indices] = 0
        arrays.final_obs[indices] = arrays.obs[indices]
        arrays.lost[indices] = True

    def _count(self, failures: Sequence[tuple[int, str]], log: bool = True) -> None:
        """Log failures and count them; stop where one environment keeps failing."""
        for index, error in failures:
            self._failures[index] += 1
            if self._failures[index] > MAX_FAILURES:
                self._stop(index, error)
            if log:
                _log.warning("%s This episode is lost and another one begins.", error.partition("\n\n")[0])

    def _stop(self, index: int, error: str) -> NoReturn:
        self.close()
        name = self.specs[index].name
        raise TaskFailure(
            f"task {name} failed {MAX_FAILURES + 1} times without finishing an episode between. `eft check-task` "
            f"examines it; leave it out of tasks.train to go on without it. The last error: {error}"
        )


def assign(specs: Sequence[TaskSpec], num_workers: int) -> list[list[int]]:
    """Share environments among workers, so that each has about as much to compute: all wait for the slowest.

    The costliest come first, each goes to the worker that has least so far.

    Returns:
        the indices of each worker's environments.
    """
    hands: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    costs = [domains.cost(spec) for spec in specs]
    for index in sorted(range(len(specs)), key=lambda index: -costs[index]):
        least = loads.index(min(loads))
        hands[least].append(index)
        loads[least] += costs[index]
    return [sorted(hand) for hand in hands]


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, specs: Sequence[tuple[int, TaskSpec]], order: dict, memory: int) -> None:
        self.specs = specs
        self.indices = [index for index, _ in specs]
        self._names = sorted({spec.name for _, spec in specs})
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection = Connection(ours.detach())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tasks.worker", str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                },
            )
        written = [(index, TypeAdapter(TaskSpec).dump_python(spec, mode="json")) for index, spec in specs]
        self.send(json.dumps({**order, "specs": written}).encode())

    def send(self, message: bytes) -> None:
        try:
            self.connection.send_bytes(message)
        except ConnectionError:
            raise self._died() from None

    def send_record(self, episodes: np.ndarray, played: Sequence[np.ndarray]) -> None:
        mine = [played[index] for index in self.indices]
        record = {"episodes": episodes[self.indices].tolist(), "shapes": [one.shape for one in mine]}
        self.send(json.dumps(record).encode())
        for one in mine:
            self.send(one.tobytes())

    def wait(self, arrays: Arrays | None, timeout: float = TIMEOUT) -> list[tuple[int, str]]:
        """Return the failures that the answer tells of.

        Args:
            arrays: of the whole vector; while their beats change the worker is alive. None waits however long it takes.
            timeout: seconds without a change after which it stands still; starting, ten times as many.

        Raises:
            WorkerError: the worker reports an error, and has ended.
            _Death: it ended without a word, or stood still and was ended.
        """
        try:
            last, still = None, 0
            while arrays is not None and not self.connection.poll(timeout):
                now = arrays.beats[self.indices].tolist()
                still = still + 1 if now == last else 0
                if still >= (_PATIENCE if arrays.starting[self.indices].any() else 1):
                    hint = "runtime.env_timeout allows more"
                    raise self._died(f"stood still for {still * timeout:g} s and was ended ({hint})", kill=True)
                last = now
            answer = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._died() from None
        if answer == DONE:
            return []
        report = json.loads(answer)
        if "error" in report:
            raise WorkerError(f"{report['error']}\n\nIn the worker:\n{report['traceback']}")
        return [(index, error) for index, error in report["failures"]]

    def reap(self) -> None:
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self, how: str | None = None, kill: bool = False) -> _Death:
        if kill:
            self._process.kill()
        self.connection.close()
        self.reap()
        code = self._process.returncode
        why = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        return _Death(f"a worker {how or why + hint}. Its tasks: {', '.join(self._names)}.")


def _shared_memory(size: int) -> int:
    """Return a file descriptor of `size` zero bytes that vanish with the last process holding them."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("eft-environments")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory
