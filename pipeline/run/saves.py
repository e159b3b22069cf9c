"""Resumable saves: a folder per save, tensors as safetensors, the rest as JSON, each verified before it is trusted.

What grows, the replay, is not written again with every save: each save adds one part per rank with the episodes since
the save before, and lists the parts that make up the replay of now. Rank 0 writes everything; the others send. The loop
only waits until all is copied: a thread writes, and what it meets the loop raises at its next step.

    <folder>/save-000000004000/state.json learner.safetensors rank-0000.safetensors ...
    <folder>/replay/000000004000-0000.safetensors ...
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_file, atomic_folder, sha256, write_json
from pipeline.run.ranks import Ranks

_STATE, _SEAL = "state.json", "seal"  # the latter is its entry with the hash of all others
_REPLAY = "replay"


class Replay(Protocol):
    """What a save needs of a replay: episodes are numbered as they come, and a full one forgets the oldest."""

    @property
    def num_added(self) -> int: ...

    @property
    def num_episodes(self) -> int: ...

    def state_tensors(
        self, since: int = 0, empty: Callable[[str, tuple[int, ...]], Tensor] | None = None
    ) -> dict[str, Tensor]: ...

    def load_state_tensors(self, state: dict[str, Tensor]) -> None: ...


class _Memory:
    """Memory of the CPU for copies, kept from save to save: to be given new memory takes longer than to copy."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory for a tensor; it is what this name was given before, so that must be done with."""
        size, held = math.prod(shape), self._held.get(name)
        # Of what grows by a little more or less each time; but a whole replay's memory is not kept for ever.
        if held is None or held.dtype != dtype or not size <= len(held) <= 4 * size:
            held = self._held[name] = torch.empty(size + size // 4, dtype=dtype)
        return held[:size].view(shape)

    def copies(self, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that share their memory with nothing, not with each other either."""
        return {
            name: self.empty(f"{prefix}/{name}", tuple(tensor.shape), tensor.dtype).copy_(tensor.detach())
            for name, tensor in tensors.items()
        }


class _Gathered(NamedTuple):
    """What the replays of all ranks gained since the last save."""

    tensors: dict[int, dict[str, Tensor]]  # by rank; on rank 0 alone
    oldest: list[int]  # of each rank: number of the oldest episode it still has ...
    ends: list[int]  # ... and of the one that comes next


@dataclass(frozen=True)
class Saved:
    """A save that is whole."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> int:
        """Updates or env_steps done."""
        return self.state["position"]

    @property
    def num_ranks(self) -> int:
        """How many processes wrote it."""
        return len(self.state["ranks"])

    @property
    def values(self) -> dict[str, Any]:
        """What all ranks had in common, beside tensors."""
        return self.state["values"]

    def learner(self) -> dict[str, Tensor]:
        """Return the tensors all ranks had in common."""
        return load_file(self.path / "learner.safetensors")

    def of_rank(self, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and values of one rank."""
        return load_file(self.path / _rank_file(rank)), self.state["ranks"][rank]

    def replay_parts(self, rank: int) -> Iterator[dict[str, Tensor]]:
        """Yield the parts of one rank's replay, oldest first."""
        for part in self.state["replay"]:
            if part["rank"] == rank:
                yield load_file(self.path.parent / _REPLAY / part["file"])


class Saves:
    """The saves of one run, written by a thread while the run goes on.

    Args:
        folder: the run's folder.
        keep: saves kept; an older one is removed once a newer one was read back whole.
        ranks: the processes of the run.
    """

    def __init__(self, folder: Path, keep: int = 2, ranks: Ranks | None = None):
        self.folder, self.keep, self.ranks = folder, keep, ranks or Ranks()
        self._parts: list[dict[str, Any]] = []  # of the replay, as the newest save lists them
        self._num_saved = 0  # episodes of this rank's replay that are in them, or in the save under way
        self._memory = _Memory()
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None  # of the save under way

    def save(
        self,
        position: int,
        learner: dict[str, Tensor],
        of_rank: tuple[dict[str, Tensor], dict[str, Any]],
        values: dict[str, Any],
        replay: Replay | None = None,
    ) -> None:
        """Copy one state of a run and begin to write it; every rank calls this.

        What is given may change as soon as this returns. A save under way is waited for first.

        Args:
            position: updates or env_steps done; names the save.
            learner: tensors that are equal on all ranks.
            of_rank: tensors and values of this rank.
            values: what else is equal on all ranks, as JSON.
            replay: of this rank; what was added since the last save is written.

        Raises:
            OSError: the save before could not be written, as `check` raises it.
        """
        self.join()
        self.check()
        parts = self._gathered_replay(replay) if replay is not None else None
        described = self.ranks.collect(of_rank[1])
        files = {}
        for rank, tensors in self.ranks.to_main(of_rank[0]):
            files[_rank_file(rank)] = self._memory.copies(f"rank {rank}", tensors)
        if not self.ranks.is_main:
            return
        files = {"learner.safetensors": self._memory.copies("learner", learner), **files}
        # As JSON already, because what is described goes on growing.
        state = json.loads(json.dumps({"position": position, "values": values, "ranks": described}, allow_nan=False))
        # A daemon, because nobody waits for it who is told twice to leave.
        self._writing = threading.Thread(target=self._write_all, args=(state, files, parts), daemon=True)
        self._writing.start()

    def join(self) -> None:
        """Wait for the save that is under way on this rank, if there is one; `check` says how it ended."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def check(self) -> None:
        """Go on if no save has failed.

        Raises:
            OSError: the disk is full, or a save cannot be read back; the saves before are kept.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Return when the last save is whole; every rank calls this before it leaves.

        Raises:
            OSError: as `check` does.
        """
        self.join()
        self.check()
        self.ranks.wait()

    def load(self) -> Saved | None:
        """Return the newest save that is whole, or None if nothing was saved; every rank calls this.

        A save that is damaged is put aside in favour of the one before, with a line that says so.

        Raises:
            ValueError: there are saves, and none is whole.
        """
        found: tuple[Path, dict[str, Any]] | str | None = None
        if self.ranks.is_main:
            try:
                found = self._newest_whole()
            except ValueError as error:
                found = str(error)
        found = self.ranks.from_main(found)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            return None
        saved = Saved(*found)
        self._parts = saved.state["replay"]
        return saved

    def load_replay(self, saved: Saved, replay: Replay) -> None:
        """Fill this rank's replay from a save by as many ranks."""
        for part in saved.replay_parts(self.ranks.rank):
            replay.load_state_tensors(part)
        self._num_saved = replay.num_added

    def forget_replay(self) -> None:
        """Let the next save write the whole replay: it was shared out anew, so the parts of before do not fit."""
        self._parts, self._num_saved = [], 0

    def _newest_whole(self) -> tuple[Path, dict[str, Any]] | None:
        for left_over in [*self.folder.glob(".*.partial"), *self.folder.glob(".*.old")]:
            shutil.rmtree(left_over)
        problems = []
        for path in reversed(_saves(self.folder)):
            problem = _problem(path, check_replay=True)
            if problem is None:
                for damaged in problems:
                    print(f"{damaged}; the save before it is taken up: {path}", file=sys.stderr, flush=True)
                self._set_aside(after=path)
                return path, json.loads((path / _STATE).read_text(encoding="utf-8"))
            problems.append(f"the save {path} is damaged: {problem}")
        if problems:
            raise ValueError(
                "; ".join(problems)
                + f". No save is whole. Put back what is missing, or delete {self.folder} to start anew"
            )
        return None

    def _set_aside(self, after: Path) -> None:
        """Rename damaged saves, so that they are neither loaded nor counted."""
        for path in _saves(self.folder):
            if path.name > after.name:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def _gathered_replay(self, replay: Replay) -> _Gathered:
        """Copy what every rank's replay gained since the last save."""
        first = replay.num_added - replay.num_episodes
        gained = {}
        if replay.num_added > self._num_saved:
            gained = replay.state_tensors(
                self._num_saved, lambda name, shape: self._memory.empty(f"replay/{name}", shape)
            )
        oldest = self.ranks.collect(first)
        ends = self.ranks.collect(replay.num_added)
        self._num_saved = replay.num_added
        # Not copied once more: `state_tensors` of a replay are no views of it.
        return _Gathered({rank: tensors for rank, tensors in self.ranks.to_main(gained) if tensors}, oldest, ends)

    def _write_all(self, state: dict[str, Any], files: dict[str, dict[str, Tensor]], replay: _Gathered | None) -> None:
        """Write a save, read it back and remove old ones; in the thread, where an error waits for `check`."""
        try:
            parts = self._write_replay(state["position"], replay) if replay is not None else []
            self._write_save(state, files, parts)
            self._parts = parts
            self._remove_old()
        except BaseException as error:  # whatever it is, the loop raises it
            self._error = error

    def _write_replay(self, position: int, gathered: _Gathered) -> list[dict[str, Any]]:
        """Write what the replays gained, and return the parts that the replays of now consist of."""
        parts = [part for part in self._parts if part["end"] > gathered.oldest[part["rank"]]]
        for rank, tensors in gathered.tensors.items():
            path = self.folder / _REPLAY / f"{position:012d}-{rank:04d}.safetensors"
            with atomic_file(path) as partial:
                _write(tensors, partial)
            end, digest = gathered.ends[rank], sha256(path)
            part = {"file": path.name, "rank": rank, "end": end, "sha256": digest, "bytes": path.stat().st_size}
            parts = [other for other in parts if other["file"] != path.name] + [part]
        return parts

    def _write_save(
        self, state: dict[str, Any], files: dict[str, dict[str, Tensor]], parts: list[dict[str, Any]]
    ) -> None:
        target = self.folder / f"save-{state['position']:012d}"
        with atomic_folder(target) as partial:
            hashes = {}
            for name, tensors in files.items():
                _write(tensors, partial / name)
                hashes[name] = sha256(partial / name)
            state = {**state, "sha256": hashes, "replay": parts}
            write_json(partial / _STATE, {**state, _SEAL: _seal(state)})
        if problem := _problem(target, check_replay=False):
            raise OSError(f"the save {target} could not be read back whole: {problem}. The one before is kept.")

    def _remove_old(self) -> None:
        for old in _saves(self.folder)[: -self.keep]:
            shutil.rmtree(old)
        used = {
            part["file"]
            for path in _saves(self.folder)
            for part in json.loads((path / _STATE).read_text(encoding="utf-8"))["replay"]
        }
        for path in (self.folder / _REPLAY).glob("*"):
            if path.name not in used:
                path.unlink()


def _saves(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("save-*") if path.is_dir())


def _rank_file(rank: int) -> str:
    return f"rank-{rank:04d}.safetensors"


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _seal(state: dict[str, Any]) -> str:
    """Return the SHA-256 of all that a state says, however it is laid out in its file."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _problem(path: Path, check_replay: bool) -> str | None:
    """Return what is wrong with a save, or None if every file it names is there with its hash."""
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        seal = state.pop(_SEAL, None)
        if seal is not None and seal != _seal(state):  # saves of older versions have none
            return f"{path / _STATE} has changed since it was written"
        named = {path / name: digest for name, digest in state["sha256"].items()}
        if check_replay:
            named |= {path.parent / _REPLAY / part["file"]: part["sha256"] for part in state["replay"]}
        for file, digest in named.items():
            if not file.exists():
                return f"{file} is missing"
            if sha256(file) != digest:
                return f"{file} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path / _STATE} cannot be read ({type(error).__name__}: {error})"
    return None
