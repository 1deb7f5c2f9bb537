"""A hub of one process: repositories in memory, and of the HTTP interface what downloading and pushing a model takes.

Real sockets for the real client. Knows nothing about models, tokens' rights or large files in parts.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The id of what a branch or commit holds, kept for whoever asks for it later."""
        if revision in self.commits or revision not in self.branches:
            return revision if revision in self.commits else None
        files = self.branches[revision]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha


class Hub:
    """Its repositories by name, what it was asked, and how it refuses: path prefix -> status and message."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.refusals: dict[str, tuple[int, str]] = {}
        self.large: Files = {}
        self.url = ""

    def put(self, name: str, files: Files, branch: str = "main") -> str:
        """Files as a branch of a repository; its commit."""
        repository = self.repositories.setdefault(name, Repository())
        repository.branches[branch] = dict(files)
        return repository.commit(branch) or ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, body: Any = None, headers: dict[str, str] = {}) -> None:  # noqa: B006
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Request-Id": "a1-b2;c3", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, {"X-Error-Code": f"{what}NotFound"})

    def body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def handle_any(self) -> None:
        path, body = unquote(self.path).partition("?")[0], self.body()
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith(("/api/models", "/api/repos")):
            self.hub.tokens.add(self.headers["Authorization"])
        for prefix, (status, message) in self.hub.refusals.items():
            if path.startswith(prefix):
                return self.answer(status, {"error": message}, {"X-Error-Message": message})
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            self.hub.large[match[1]] = body
            return self.answer(200)
        if path in ("/api/repos/create", "/api/validate-yaml"):
            return self.created(json.loads(body)) if path == "/api/repos/create" else self.answer(200, {"warnings": []})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            upload = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}?signature=s3cret"}}}
                      for one in json.loads(body)["objects"]]  # fmt: skip
            return self.answer(200, {"transfer": "basic", "objects": upload})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree|branch|preupload|commit)/(.+))?", path):
            return self.of_repository(match[1], match[2] or "revision", match[3] or "main", body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolved(match[1], match[2], match[3])
        return self.answer(501, {"error": f"{self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def created(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def of_repository(self, name: str, what: str, revision: str, body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.missing("Repo")
        if what == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, dict(repository.branches["main"]))
            return self.answer(409 if known else 200, {})
        if what == "preupload":
            kinds = {True: "lfs", False: "regular"}
            files = [{"path": one["path"], "uploadMode": kinds[one["path"].endswith(".safetensors")]}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": [{**one, "shouldIgnore": False} for one in files]})
        sha = repository.commit(revision)
        if sha is None:
            return self.missing("Revision")
        if what == "commit":
            for line in body.splitlines():
                self.change(repository.branches[revision], **json.loads(line))
            sha = repository.commit(revision) or ""
            url = f"{self.hub.url}/{name}/commit/{sha}"
            return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})
        files = repository.commits[sha]
        if what == "tree":
            return self.answer(200, [{"type": "file", "path": path, "size": len(data), "oid": oid(data)}
                                     for path, data in files.items()])  # fmt: skip
        siblings = [{"rfilename": path} for path in files]
        return self.answer(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def change(self, files: Files, key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.hub.large[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]

    def resolved(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories[name]
        sha = repository.commit(revision) or ""
        if path not in repository.commits[sha]:
            return self.missing("Entry")
        data = repository.commits[sha][path]
        return self.answer(200, data, {"X-Repo-Commit": sha, "ETag": f'"{oid(data)}"'})


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers at its `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
