"""A server of the few addresses of the Hugging Face Hub that a repository is made, filled and read by."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.commits}".encode()).hexdigest()


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    endpoint: str = ""


class Requests(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers |= {"Content-Type": "application/json"} if not isinstance(content, bytes) else {}
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def seen(self, name: str) -> Repository | None:
        """A repository that the token of the request may see; where there is none, the request is answered."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.is_owner()):
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        api = path[:2] == ["api", "models"]
        owner, name, *rest = path[2:] if api else path
        repository = self.seen(f"{owner}/{name}")
        if repository is None:
            return
        if api and rest[:1] == ["tree"]:
            self.answer(200, [self.entry(repository, file) for file in repository.files])
        elif api and rest and rest[1] not in ("main", repository.sha):
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        elif api:
            siblings = [{"rfilename": file} for file in repository.files]
            facts = {"id": f"{owner}/{name}", "private": repository.private, "sha": repository.sha}
            self.answer(200, facts | {"siblings": siblings})
        else:
            content = repository.files["/".join(rest[2:])]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, X_Repo_Commit=repository.sha)

    def entry(self, repository: Repository, file: str) -> dict[str, Any]:
        content = repository.files[file]
        oid, size = hashlib.sha256(content).hexdigest(), len(content)
        large = {"lfs": {"oid": oid, "size": size, "pointerSize": 130}} if file in repository.large else {}
        return {"type": "file", "path": file, "oid": oid[:40], "size": size} | large

    def do_POST(self) -> None:
        path, content = self.path.partition("?")[0].strip("/").split("/"), self.body()
        if not self.is_owner():
            self.answer(401, {"error": "Invalid username or password."})
        elif path == ["api", "repos", "create"]:
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                self.answer(409, {"error": "You already created this model repo", "url": self.url(name)})
                return
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private", {".gitattributes": b""})
            self.answer(200, {"url": self.url(name)})
        elif path == ["api", "validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif path[-1] == "batch":
            sent = json.loads(content)["objects"]
            actions = [{"upload": {"href": f"{self.hub.endpoint}/objects/{each['oid']}"}} for each in sent]
            found = [each | {"actions": action} for each, action in zip(sent, actions, strict=True)]
            self.answer(200, {"transfer": "basic", "objects": found})
        elif path[4] == "preupload":
            files = json.loads(content)["files"]
            large = [each["path"].endswith((".safetensors", ".onnx")) for each in files]
            modes = [{"path": each["path"], "shouldIgnore": False} for each in files]
            ways = [{"uploadMode": "lfs" if each else "regular"} for each in large]
            self.answer(200, {"files": [mode | way for mode, way in zip(modes, ways, strict=True)]})
        else:
            self.commit(self.hub.repositories["/".join(path[2:4])], content)

    def commit(self, repository: Repository, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
                repository.large.add(value["path"])
            elif kind == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        address = self.url(next(name for name, each in self.hub.repositories.items() if each is repository))
        self.answer(200, {"commitUrl": f"{address}/commit/{repository.sha}", "commitOid": repository.sha})

    def do_PUT(self) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def url(self, name: str) -> str:
        return f"{self.hub.endpoint}/{name}"


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Requests,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
