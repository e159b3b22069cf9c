"""A small Hugging Face Hub for tests: enough for the real client to create, push, tag, list and pull."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKEN = "hf_" + "t" * 34  # the only one the server accepts
LARGE = (".safetensors", ".mp4")  # sent apart from the commit, as Git LFS files


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
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # content by SHA-256
        self.requests: list[tuple[str, str]] = []  # method, path
        self.failures: list[tuple[str, int]] = []  # (part of a path, status): each fails one request
        self.url = ""


class Refused(Exception):
    def __init__(self, status: int, code: str = ""):
        super().__init__(status, code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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
        if self.command != "HEAD":
            self.wfile.write(body)

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
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [self._plan_upload(self._repo(match[1]), file) for file in json.loads(body)["files"]]
            self._send({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send({"transfer": "basic", "objects": [self._plan_large(o) for o in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commit = self._apply(self._repo(match[1]), [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{match[1]}/commit/{commit.hash}"
            self._send({"success": True, "commitOid": commit.hash, "commitUrl": url, "hookOutput": ""})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tag/(.+)", path):
            self._repo(match[1]).tags[json.loads(body)["tag"]] = self._commit(match[1], match[2]).hash
            self._send({})
        else:
            raise Refused(404, "EntryNotFound")

    def _create(self, wish: dict[str, Any]) -> None:
        name = f"{wish.get('organization') or 'me'}/{wish['name']}"
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
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._send([self._describe(*item) for item in sorted(self._commit(match[1], match[2]).files.items())])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            repo = self._repo(match[1])
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].hash}
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": hash} for t, hash in repo.tags.items()]
            self._send({"branches": [branch], "converts": [], "tags": tags})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            commit = self._commit(match[1], match[2] or "main")
            names = [{"rfilename": name} for name in sorted(commit.files)]
            about = {"id": match[1], "sha": commit.hash, "private": self._repo(match[1]).private, "siblings": names}
            self._send(about | {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self._commit(match[1], match[2])
            if match[3] not in commit.files:
                raise Refused(404, "EntryNotFound")
            file = commit.files[match[3]]
            self._send(file.content, headers={"X-Repo-Commit": commit.hash, "ETag": f'"{file.etag}"'})
        else:
            raise Refused(404, "RepoNotFound")

    @staticmethod
    def _describe(path: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": file.git_hash, "size": len(file.content), "path": path}
        if file.large:
            entry["lfs"] = {"oid": file.etag, "size": len(file.content), "pointerSize": 130}
        return entry


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
