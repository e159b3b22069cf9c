"""A small Hugging Face Hub for tests: enough for the real clients to create, push, tag, list, pull and stream.

It can be told to refuse requests, to answer slowly and to cut connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKEN = "hf_" + "t" * 34  # the only one the server accepts
LARGE = (".safetensors", ".mp4", ".parquet")  # sent apart from the commit, as Git LFS files


REPO = r"(models|datasets)/([^/]+/[^/]+)"


class File(NamedTuple):
    content: bytes
    large: bool

    @property
    def git_hash(self) -> str:
        """What the Hub calls `oid`: the hash of the blob, which for a large file is a pointer."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(self.content)}\n"
        blob = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.large else self.git_hash


class Commit(NamedTuple):
    hash: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, message: str, files: dict[str, File]) -> Commit:
        """Append a commit."""
        seed = json.dumps([len(self.commits), message, sorted((name, file.etag) for name, file in files.items())])
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, tag or hash."""
        revision = self.tags.get(revision, revision)
        return self.commits[-1] if revision == "main" else next((c for c in self.commits if c.hash == revision), None)


class Hub:
    """The server's state, which tests look at and disturb."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}  # by name; data sets as `datasets/<name>`
        self.large: dict[str, bytes] = {}  # content by SHA-256
        self.requests: list[tuple[str, str]] = []  # method, path
        self.failures: list[tuple[str, int]] = []  # (part of a path, status): each fails one request
        self.cuts: list[tuple[str, int]] = []  # (part of a path, bytes): each cuts one answer after so many bytes
        self.seconds_per_answer = 0.0
        self.url = ""
        self.token = TOKEN


class Refused(Exception):
    def __init__(self, status: int, code: str = ""):
        super().__init__(status, code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one packet: else each answer waits for the client's delayed acknowledgement
    hub: Hub

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the test's output is its own."""

    def _answer(self, respond: Any) -> None:
        address = urllib.parse.urlsplit(self.path)
        path, body = urllib.parse.unquote(address.path), self._body()
        self.hub.requests.append((self.command, path))
        try:
            for failure in self.hub.failures:
                if failure[0] in path:
                    self.hub.failures.remove(failure)
                    raise Refused(failure[1])
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/large/")
            if not authorized:
                raise Refused(401)
            time.sleep(self.hub.seconds_per_answer)
            respond(path, urllib.parse.parse_qs(address.query), body)
        except Refused as refused:
            self._send({"error": refused.code or "refused"}, refused.status, {"X-Error-Code": refused.code})

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = next((cut for cut in self.hub.cuts if cut[0] in self.path), None)
        if cut is None:
            self.wfile.write(body)
        else:
            self.hub.cuts.remove(cut)
            self.wfile.write(body[: cut[1]])
            self.close_connection = True

    def _send_file(self, file: File, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(file.content, headers=headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(file.content) - 1), len(file.content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(file.content)}"
        self._send(file.content[first : last + 1], 206, headers)

    def _repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            raise Refused(404, "RepoNotFound")
        return self.hub.repos[name]

    def _commit(self, name: str, revision: str) -> Commit:
        commit = self._repo(name).at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        return commit

    def _post(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif match := re.fullmatch(rf"/api/{REPO}/preupload/main", path):
            files = [self._plan_upload(self._repo(_name(match)), file) for file in json.loads(body)["files"]]
            self._send({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send({"transfer": "basic", "objects": [self._plan_large(o) for o in json.loads(body)["objects"]]})
        elif match := re.fullmatch(rf"/api/{REPO}/commit/main", path):
            commit = self._apply(self._repo(_name(match)), [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{_name(match)}/commit/{commit.hash}"
            self._send({"success": True, "commitOid": commit.hash, "commitUrl": url, "hookOutput": ""})
        elif match := re.fullmatch(rf"/api/{REPO}/tag/(.+)", path):
            self._repo(_name(match)).tags[json.loads(body)["tag"]] = self._commit(_name(match), match[3]).hash
            self._send({})
        elif match := re.fullmatch(rf"/api/{REPO}/paths-info/([^/]+)", path):
            asked = urllib.parse.parse_qs(body.decode())["paths"] if b"paths=" in body else json.loads(body)["paths"]
            files = self._commit(_name(match), match[3]).files
            self._send([entry for path in asked for entry in _entries(files) if entry["path"] == path.strip("/")])
        else:
            raise Refused(404, "EntryNotFound")

    def _create(self, wish: dict[str, Any]) -> None:
        name = f"{wish.get('organization') or 'me'}/{wish['name']}"
        name = f"datasets/{name}" if wish.get("type") == "dataset" else name
        exists = name in self.hub.repos
        if not exists:
            self.hub.repos[name] = Repo(wish.get("private") is True or wish.get("visibility") == "private")
            self.hub.repos[name].add("initial commit", {".gitattributes": File(b"", False)})
        self._send({"url": f"{self.hub.url}/{name}", "name": name}, 409 if exists else 200)

    def _plan_upload(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        there = repo.commits[-1].files.get(file["path"])
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        known = {"oid": there.etag} if there else {}
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known}

    def _plan_large(self, wish: dict[str, Any]) -> dict[str, Any]:
        plan = {"oid": wish["oid"], "size": wish["size"]}
        if wish["oid"] not in self.hub.large:
            plan["actions"] = {"upload": {"href": f"{self.hub.url}/large/{wish['oid']}"}}
        return plan

    def _apply(self, repo: Repo, lines: list[dict[str, Any]]) -> Commit:
        files, message = dict(repo.commits[-1].files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repo.commits[-1].hash):
                    raise Refused(412)
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.hub.large[value["oid"]], large=True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        return repo.add(message, files)

    def _put(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        sha256 = path.removeprefix("/large/")
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refused(422)
        self.hub.large[sha256] = body
        self._send(b"")

    def _get(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if match := re.fullmatch(rf"/api/{REPO}/tree/([^/]+)(?:/(.*))?", path):
            entries, within = _entries(self._commit(_name(match), match[3]).files), match[4] or ""
            entries = [e for e in entries if not within or e["path"].startswith(f"{within}/")]
            if query.get("recursive", ["false"])[0].lower() != "true":
                entries = [e for e in entries if e["path"].count("/") == (within.count("/") + 1 if within else 0)]
            self._send(entries)
        elif match := re.fullmatch(rf"/api/{REPO}/refs", path):
            repo = self._repo(_name(match))
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].hash}
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": hash} for t, hash in repo.tags.items()]
            self._send({"branches": [branch], "converts": [], "tags": tags})
        elif match := re.fullmatch(rf"/api/{REPO}(?:/revision/(.+))?", path):
            commit = self._commit(_name(match), match[3] or "main")
            names = [{"rfilename": name} for name in sorted(commit.files)]
            private = self._repo(_name(match)).private
            about = {"id": match[2], "sha": commit.hash, "private": private, "siblings": names}
            self._send(about | {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []})
        elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self._commit(match[1], match[2])
            if match[3] not in commit.files:
                raise Refused(404, "EntryNotFound")
            self._send_file(commit.files[match[3]], commit.hash)
        else:
            raise Refused(404, "RepoNotFound")


def _name(match: re.Match[str]) -> str:
    return f"datasets/{match[2]}" if match[1] == "datasets" else match[2]


def _entries(files: dict[str, File]) -> list[dict[str, Any]]:
    """What the Hub lists of a commit: every file, and every folder on the way to one."""
    folders = {name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)
    ]
    for path, file in sorted(files.items()):
        entry = {"type": "file", "oid": file.git_hash, "size": len(file.content), "path": path}
        lfs = {"lfs": {"oid": file.etag, "size": len(file.content), "pointerSize": 130}} if file.large else {}
        entries.append(entry | lfs)
    return entries


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
