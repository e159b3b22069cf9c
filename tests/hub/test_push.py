"""The push, to a Hub that runs on this machine and can be disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pipeline.hub.push import Pushed, check_repo_id, hashes, push

# --- the push ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repo_id", ["", "name", "a/b/c", "/tmp/x", "me/..", "me/a--b", "me/x.git", "-me/x", "me/x y", "me/" + "x" * 200]
)
def test_names_that_cannot_be_repos_are_refused(repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"publish\.repo_id"):
        check_repo_id(repo_id)


def test_names_that_can_be_repos_are_accepted() -> None:
    for repo_id in ("me/eft", "some-one/Eft_1.0-mt50"):
        check_repo_id(repo_id)


REPO = "me/eft-test"


def push_as(folder: Path, api: HfApi, tag: str = "v1") -> Pushed:
    return push(folder, REPO, private=True, tag=tag, api=api)


def test_a_push_makes_the_repo_equal_to_the_folder(root: Path, server, api: HfApi) -> None:
    folder = Path("ready")
    pushed = push_as(folder, api)
    repo = server.repos["me/eft-test"]
    assert repo.private
    assert pushed == ("me/eft-test", repo.commits[-1].hash, True)
    assert repo.tags == {"v1": pushed.commit}
    there = {name: file.content for name, file in repo.commits[-1].files.items() if name != ".gitattributes"}
    assert there == {name: (folder / name).read_bytes() for name in hashes(folder)}


def test_nothing_new_makes_no_commit(root: Path, server, api: HfApi) -> None:
    folder = Path("ready")
    first = push_as(folder, api)
    again = push_as(folder, api)
    assert again == (first.repo, first.commit, False)
    assert len(server.repos["me/eft-test"].commits) == 2


def test_a_changed_release_replaces_the_old_one(root: Path, server, api: HfApi) -> None:
    folder = Path("ready")
    first = push_as(folder, api)
    (folder / "replay.mp4").unlink()
    (folder / "metrics.json").write_text("{}")
    second = push_as(folder, api, "v2")
    repo = server.repos["me/eft-test"]
    assert second.new
    assert "replay.mp4" not in repo.commits[-1].files
    assert repo.commits[-1].files["metrics.json"].content == b"{}"
    assert repo.tags == {"v1": first.commit, "v2": second.commit}


def test_a_version_s_tag_does_not_move(root: Path, server, api: HfApi) -> None:
    folder = Path("ready")
    first = push_as(folder, api)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"publish\.tag 'v1' is on another commit"):
        push_as(folder, api)
    assert server.repos["me/eft-test"].tags == {"v1": first.commit}


def test_a_repo_with_something_else_in_it_is_left_alone(root: Path, server, api: HfApi) -> None:
    api.create_repo("me/eft-test")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="thesis.txt", repo_id="me/eft-test")
    with pytest.raises(ValueError, match=r"already holds other files \(thesis\.txt\)"):
        push_as(Path("ready"), api)
    assert "thesis.txt" in server.repos["me/eft-test"].commits[-1].files


@pytest.mark.parametrize(
    ("part", "status", "advice"),
    [
        ("/api/repos/create", 401, "hf auth login"),
        ("/api/repos/create", 403, "may not write"),
        ("/preupload/", 404, "no such owner"),
        ("/commit/", 429, "asks for a pause"),
        ("/commit/", 500, "it goes on where it stopped"),
    ],
)
def test_a_refused_push_says_what_to_do_and_can_be_repeated(
    root: Path, server, api: HfApi, part: str, status: int, advice: str
) -> None:
    folder = Path("ready")
    server.failures.append((part, status))
    with pytest.raises(OSError, match=advice) as error:
        push_as(folder, api)
    assert server.token not in str(error.value)
    sent = len([request for request in server.requests if request[0] == "PUT"])
    pushed = push_as(folder, api)
    assert pushed.new
    assert server.repos["me/eft-test"].tags == {"v1": pushed.commit}
    if part == "/commit/":
        assert len([request for request in server.requests if request[0] == "PUT"]) == sent > 0


def test_a_wrong_token_does_not_show(root: Path, server, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "hf_" + "w" * 34
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(OSError, match="hf auth login") as error:
        push_as(Path("ready"), HfApi(endpoint=server.url))
    assert "hf_w" not in str(error.value)


def test_a_server_that_is_not_there(root: Path, server, api: HfApi) -> None:
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token=server.token)
    with pytest.raises(OSError, match="Check the network, then run `dvc repro publish` again"):
        push_as(Path("ready"), nowhere)


def test_someone_else_s_push_meanwhile_is_not_overwritten(root: Path, server, api: HfApi) -> None:
    push_as(Path("ready"), api)
    Path("ready/metrics.json").write_text("{}")
    repo = server.repos["me/eft-test"]
    theirs = repo.commits[-1].files

    class Racing(HfApi):
        def create_commit(self, *args, **kwargs):
            repo.add("theirs", theirs | {"notes.md": theirs["README.md"]})
            return super().create_commit(*args, **kwargs)

    with pytest.raises(OSError, match="Someone else has pushed"):
        push_as(Path("ready"), Racing(endpoint=server.url, token=server.token), "v2")
    assert repo.commits[-1].message == "theirs"
    assert "v2" not in repo.tags


def test_an_upload_that_is_cut_is_continued(root: Path, server, api: HfApi) -> None:
    server.failures += [("/large/", 410)] * 20  # the link it uploads to has run out
    with pytest.raises(OSError, match="it goes on where it stopped"):
        push_as(Path("ready"), api)
    server.failures.clear()
    assert len(server.repos["me/eft-test"].commits) == 1  # nothing half is ever shown
    assert push_as(Path("ready"), api).new
