"""Many environments stepping together, in this process or in a few workers with many environments each."""

from __future__ import annotations

import json
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
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter

from pipeline.tasks.env_group import EnvGroup, Widths, num_bytes, view
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.worker import DONE, RESET, RESTORE, STEP


class Step(NamedTuple):
    """What one step of N environments gives."""

    obs: np.ndarray  # (N, O) float32; first observation of the next episode where this one ended
    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    final_obs: np.ndarray  # (N, O) float32; true last observation where the episode ended, else `obs`
    success: np.ndarray  # (N,) bool, of the step just taken
    picture: np.ndarray  # (N, P, P, 3) uint8 RGB of `obs`; P is 0 where nothing is drawn
    final_picture: np.ndarray  # (N, P, P, 3) uint8 RGB of `final_obs` where the episode ended; undefined elsewhere


class WorkerError(RuntimeError):
    """A worker failed; the message holds the task and the worker's own traceback."""


class VectorEnv:
    """N environments, which start the next episode by themselves.

    Episode e of environment i is determined by (seed, i, e) and the actions alone: results do not depend on
    `num_workers`.

    Args:
        specs: the task of each environment; repeat one to have several of it.
        obs_dim: padded width of observations.
        action_dim: padded width of actions.
        seed: seed of all episodes.
        num_workers: processes that step them; 0 = in this process.
        picture_size: P, pixels of a side of the pictures that are drawn of every observation; 0 draws none.

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
        picture_size: int = 0,
    ) -> None:
        n = len(specs)
        if n == 0:
            raise ValueError("VectorEnv needs at least one task.")
        self.specs = tuple(specs)
        self.episodes = np.zeros(n, np.int64)  # number of the episode that each environment is in
        self._workers: list[_Worker] = []
        self._group: EnvGroup | None = None
        numbered = list(enumerate(specs))
        widths = Widths(n, obs_dim, action_dim, picture_size)
        if num_workers == 0:
            self._arrays = view(bytearray(num_bytes(widths)), widths)
            self._group = EnvGroup(numbered, self._arrays, seed)
            return
        memory = _shared_memory(num_bytes(widths))
        self._arrays = view(mmap.mmap(memory, 0), widths)
        order = {"widths": widths, "seed": seed}
        try:
            for first in range(min(num_workers, n)):
                self._workers.append(_Worker(numbered[first::num_workers], order, memory))
            self._wait()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)

    @property
    def picture(self) -> np.ndarray:
        """The pictures of the current observations, (N, P, P, 3) uint8 RGB."""
        return self._arrays.picture.copy()

    def reset(self) -> np.ndarray:
        """Start episode 0 of each environment; return the first observations, (N, O) float32."""
        self.episodes[:] = 0
        if self._group:
            self._group.reset()
        else:
            self._command(RESET)
        return self._arrays.obs.copy()

    def step(self, action: np.ndarray) -> Step:
        """Take one agent step in each environment.

        Args:
            action: (N, A) in [-1, 1].

        Raises:
            SimulationError: a simulator failed (with `num_workers=0`).
            WorkerError: one failed in a worker.
        """
        if action.shape != self._arrays.action.shape:
            raise ValueError(f"expected actions of shape {self._arrays.action.shape}, got {action.shape}.")
        self._arrays.action[:] = action
        if self._group:
            self._group.step()
        else:
            self._command(STEP)
        _, *results = self._arrays
        step = Step(*(array.copy() for array in results))
        self.episodes += step.terminated | step.truncated
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
        self.episodes[:] = episodes
        if self._group:
            self._group.restore(self.episodes.tolist(), played)
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
        self._workers, self._group = [], None

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self, command: bytes, played: Sequence[np.ndarray] = ()) -> None:
        if not self._workers:
            raise RuntimeError("this VectorEnv is closed.")
        try:
            for worker in self._workers:
                worker.send(command)
                if command == RESTORE:
                    worker.send_record(self.episodes, played)
            self._wait()
        except BaseException:  # also Ctrl-C: an answer left unread would be taken for the next one
            self.close()
            raise

    def _wait(self) -> None:
        for worker in self._workers:
            worker.wait()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, specs: Sequence[tuple[int, TaskSpec]], order: dict, memory: int) -> None:
        self._indices = [index for index, _ in specs]
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
        mine = [played[index] for index in self._indices]
        record = {"episodes": episodes[self._indices].tolist(), "shapes": [one.shape for one in mine]}
        self.send(json.dumps(record).encode())
        for one in mine:
            self.send(one.tobytes())

    def wait(self) -> None:
        try:
            answer = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._died() from None
        if answer != DONE:
            report = json.loads(answer)
            raise WorkerError(f"{report['error']}\n\nIn the worker:\n{report['traceback']}")

    def reap(self) -> None:
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self) -> WorkerError:
        self.reap()
        code = self._process.returncode
        why = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        return WorkerError(f"a worker ended {why}{hint}. Its tasks: {', '.join(self._names)}.")


def _shared_memory(size: int) -> int:
    """Return a file descriptor of `size` zero bytes that vanish with the last process holding them."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("eft-environments")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory
