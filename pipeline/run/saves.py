"""Resumable saves: a folder per save, tensors as safetensors, the rest as JSON, each verified before it is trusted.

What grows, the replay, is not written again with every save: each save adds one part per rank with the episodes since
the save before, and lists the parts that make up the replay of now. Rank 0 writes everything; the others send.

    <folder>/save-000000004000/state.json learner.safetensors rank-0000.safetensors ...
    <folder>/replay/000000004000-0000.safetensors ...
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_file, atomic_folder, sha256, write_json
from pipeline.run.ranks import Ranks

_STATE = "state.json"
_REPLAY = "replay"


class Replay(Protocol):
    """What a save needs of a replay: episodes are numbered as they come, and a full one forgets the oldest."""

    @property
    def num_added(self) -> int: ...

    @property
    def num_episodes(self) -> int: ...

    def state_tensors(self, since: int = 0) -> dict[str, Tensor]: ...

    def load_state_tensors(self, state: dict[str, Tensor]) -> None: ...


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
    """The saves of one run.

    Args:
        folder: the run's folder.
        keep: saves kept; an older one is removed once a newer one was read back whole.
        ranks: the processes of the run.
    """

    def __init__(self, folder: Path, keep: int = 2, ranks: Ranks | None = None):
        self.folder, self.keep, self.ranks = folder, keep, ranks or Ranks()
        self._parts: list[dict[str, Any]] = []  # of the replay, as the newest save lists them
        self._num_saved = 0  # episodes of this rank's replay that are in them

    def save(
        self,
        position: int,
        learner: dict[str, Tensor],
        of_rank: tuple[dict[str, Tensor], dict[str, Any]],
        values: dict[str, Any],
        replay: Replay | None = None,
    ) -> None:
        """Save one state of a run; every rank calls this.

        Args:
            position: updates or env_steps done; names the save.
            learner: tensors that are equal on all ranks.
            of_rank: tensors and values of this rank.
            values: what else is equal on all ranks, as JSON.
            replay: of this rank; what was added since the last save is written.

        Raises:
            OSError: the disk is full, or the save cannot be read back; the saves before are kept.
        """
        parts = self._save_replay(position, replay) if replay is not None else []
        described = self.ranks.collect(of_rank[1])
        target = self.folder / f"save-{position:012d}"
        if not self.ranks.is_main:
            list(self.ranks.to_main(of_rank[0]))
            self.ranks.wait()
            return
        with atomic_folder(target) as partial:
            hashes = {}
            for name, tensors in [("learner.safetensors", learner), *self._of_ranks(of_rank[0])]:
                _write(tensors, partial / name)
                hashes[name] = sha256(partial / name)
            state = {"position": position, "values": values, "ranks": described, "sha256": hashes, "replay": parts}
            write_json(partial / _STATE, state)
        problem = _problem(target, check_replay=False)
        if problem:
            raise OSError(f"the save {target} could not be read back whole: {problem}. The one before is kept.")
        self._parts = parts
        self._remove_old()
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

    def _save_replay(self, position: int, replay: Replay) -> list[dict[str, Any]]:
        """Write what every rank's replay gained, and return the parts that the replays of now consist of."""
        first = replay.num_added - replay.num_episodes
        gained = replay.state_tensors(since=self._num_saved) if replay.num_added > self._num_saved else {}
        oldest = self.ranks.collect(first)
        ends = self.ranks.collect(replay.num_added)
        self._num_saved = replay.num_added
        parts = [part for part in self._parts if part["end"] > oldest[part["rank"]]]
        for rank, tensors in self.ranks.to_main(gained):
            if not tensors:
                continue
            path = self.folder / _REPLAY / f"{position:012d}-{rank:04d}.safetensors"
            with atomic_file(path) as partial:
                _write(tensors, partial)
            digest = sha256(path)
            part = {"file": path.name, "rank": rank, "end": ends[rank], "sha256": digest, "bytes": path.stat().st_size}
            parts = [other for other in parts if other["file"] != path.name] + [part]
        return parts

    def _of_ranks(self, own: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for rank, tensors in self.ranks.to_main(own):
            yield _rank_file(rank), tensors

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
    # Cloned, because safetensors refuses tensors that share storage, as a model's tied buffers may.
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def _problem(path: Path, check_replay: bool) -> str | None:
    """Return what is wrong with a save, or None if every file it names is there with its hash."""
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
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
