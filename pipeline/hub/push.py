"""The push: make a repo on the Hub hold exactly one folder, in one commit, or in none where nothing is new."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from pipeline import store
from pipeline.files import sha256, write_json
from pipeline.hub.private import redact, refuse_private

Kind = Literal["model", "dataset"]
_MARKS = {"model": "tasks.json", "dataset": "episodes.parquet"}  # a file that only a release of this kind has
_KEPT = {".gitattributes"}  # the Hub's own


class Difference(NamedTuple):
    """What a push would do."""

    repo: str
    kind: Kind
    head: str | None  # the repo's newest commit; None if there is no such repo yet
    send: dict[str, int]  # file -> bytes: new or changed
    delete: list[str]
    same: list[str]


class Pushed(NamedTuple):
    """Where a release went."""

    repo: str
    commit: str
    new: bool  # whether there was anything to send


def check_repo_id(repo_id: str, parameter: str = "publish.repo_id") -> None:
    """Refuse what cannot be the name of a repo.

    Raises:
        ValueError: naming the parameter.
    """
    if not store.REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".")):
        raise ValueError(
            f"{parameter} is {repo_id!r}: expected `owner/name` of letters, digits, `-`, `_` and `.`, "
            "or null to push nothing."
        )


def kind_of(folder: str | Path) -> Kind:
    """Say whether a release folder holds a model or demonstrations.

    Raises:
        ValueError: neither.
    """
    folder = Path(folder)
    for kind, mark in _MARKS.items():
        if (folder / mark).is_file() or any(folder.glob(f"*/{mark}")):
            return kind  # pyright: ignore[reportReturnType]
    raise ValueError(
        f"{folder} is no release: it holds neither tasks.json (a model) nor <task>/episodes.parquet (demonstrations). "
        "`dvc repro publish` writes checkpoints/publish/release and checkpoints/publish/demos."
    )


def hashes(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path in it."""
    return {name: sha256(path) for name, path in _files(folder).items()}


def compare(folder: str | Path, repo: str, api: HfApi) -> Difference:
    """Compare a folder with what the repo holds now. Sends and creates nothing.

    Raises:
        ValueError: the folder is no release or holds something private, or the repo holds something else.
        OSError: the Hub refused or could not be reached; the message says what to do, and holds no token.
    """
    check_repo_id(repo)
    kind = kind_of(folder)
    refuse_private(folder)
    files = _files(folder)
    try:
        head = api.repo_info(repo, repo_type=kind).sha
        there = {
            entry.path: entry
            for entry in api.list_repo_tree(repo, recursive=True, revision=head, repo_type=kind)
            if isinstance(entry, RepoFile) and entry.path not in _KEPT
        }
    except RepositoryNotFoundError as error:
        if error.response is not None and error.response.status_code == 401:
            raise OSError(_explain(error, repo)) from None
        head, there = None, {}
    except (OSError, HTTPError) as error:
        raise OSError(_explain(error, repo)) from None
    foreign = sorted(there.keys() - {"README.md"})
    if foreign and not any(name.rpartition("/")[2] == _MARKS[kind] for name in foreign):
        raise ValueError(
            f"{repo} already holds other files ({', '.join(foreign[:3])}). A release replaces all files of its repo: "
            "choose another publish.repo_id."
        )
    same = [name for name, path in files.items() if name in there and _is_same(path, there[name])]
    send = {name: path.stat().st_size for name, path in files.items() if name not in same}
    return Difference(repo, kind, head, send, sorted(there.keys() - files.keys()), same)


def push(folder: str | Path, repo: str, private: bool, tag: str | None, api: HfApi) -> Pushed:
    """Make the repo on the Hub hold exactly this folder, in one commit, and tag it. Nothing new makes no commit.

    An interrupted push is continued by pushing again: large files that arrived are not sent twice, and what the repo
    shows changes all at once, with the commit.

    Args:
        folder: the release.
        repo: `owner/name`; made if it is not there.
        private: whether a new repo is private. One that exists stays as it is.
        tag: version put on the commit; a tag that is there does not move.
        api: the Hub's client; it finds the token by its own means.

    Raises:
        ValueError: see `compare`; or the tag is on another commit.
        OSError: the Hub refused or could not be reached; the message says what to do, and holds no token.
    """
    found = compare(folder, repo, api)
    try:
        if found.head is None:
            api.create_repo(repo, private=private, repo_type=found.kind, exist_ok=True)
        commit, new = found.head, bool(found.send or found.delete)
        if new:
            operations = [CommitOperationAdd(name, Path(folder) / name) for name in found.send]
            deletions = [CommitOperationDelete(name) for name in found.delete]
            # Refused by the Hub if someone else has pushed since the plan was made.
            done: Any = api.create_commit(
                repo,
                [*operations, *deletions],
                commit_message="Publish",
                repo_type=found.kind,
                parent_commit=found.head,
            )
            commit = done.oid
        assert commit is not None
        if tag:
            _tag(api, found, tag, commit, new)
    except (OSError, HTTPError, RuntimeError) as error:  # the last: the client's word for an upload that broke off
        raise OSError(_explain(error, repo)) from None
    return Pushed(repo, commit, new)


def write_receipt(path: str | Path, pushed: Pushed | None, tag: str | None, files: dict[str, str]) -> None:
    """Write where a release went and the SHA-256 of every file of it; without `pushed`, that it went nowhere."""
    receipt = {
        "repo": pushed.repo if pushed else None,
        "commit": pushed.commit if pushed else None,
        "tag": tag if pushed else None,
        "files": files,
    }
    write_json(path, receipt)


def _files(folder: str | Path) -> dict[str, Path]:
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _is_same(path: Path, there: RepoFile) -> bool:
    if path.stat().st_size != there.size:
        return False
    if there.lfs is not None:
        return sha256(path) == there.lfs.sha256
    content = path.read_bytes()  # what is not sent apart is small
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id


def _tag(api: HfApi, found: Difference, tag: str, commit: str, new: bool) -> None:
    tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(found.repo, repo_type=found.kind).tags}
    if tag not in tagged:
        api.create_tag(found.repo, tag=tag, revision=commit, repo_type=found.kind)
    elif tagged[tag] != commit:
        what = f"The release was pushed as {commit[:12]}" if new else f"What is there now is {commit[:12]}"
        raise ValueError(
            f"publish.tag {tag!r} is on another commit of {found.repo} ({tagged[tag][:12]}), and a version's tag does "
            f"not move. {what}; choose a new tag and push again."
        )


def _explain(error: Exception, repo: str) -> str:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = response.status_code if response is not None else None
    advice = {
        401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
        403: "The token may not write there: log in with `hf auth login`, or choose another publish.repo_id.",
        404: "There is no such owner, or the token may not see the repo.",
        409: "Someone else is pushing to it: look at what they sent, then push again.",
        412: "Someone else has pushed to it meanwhile: look at what they sent, then push again.",
        429: "The Hub asks for a pause: try again in some minutes.",
    }.get(status or 0, "Check the network, then run `dvc repro publish` again: it goes on where it stopped.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"pushing to {repo} failed: {redact(reason)} {advice}"
