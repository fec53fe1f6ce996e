"""A Hub for the tests: the HTTP calls of huggingface_hub's client, on 127.0.0.1, with faults to switch on.

Repositories live in memory as a chain of commits. Standard library only. Clients need, before they import
huggingface_hub: `HF_ENDPOINT=hub.url`, `HF_HUB_DISABLE_XET=1`, a cache of their own in `HF_HOME`, and
`HF_HUB_OFFLINE` unset.

    with HubServer({"hf_secret": "alice"}) as hub:
        hub.add_fault("flip", "GET", r"resolve/.*model.safetensors", times=1)
        ...
        assert hub.requests == ["GET /api/models/alice/model/revision/main", ...]
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".npz", ".gz", ".parquet", ".arrow")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Blob:
    """Content of one file, and how git keeps it."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """git's name: of the content, or of the pointer that stands for it."""
        data = self.content
        if self.lfs:
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            )
            data = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    title: str
    parent: str | None
    files: dict[str, Blob]


@dataclass
class Repository:
    """`refs` names commits: branches and pull requests (`refs/pr/1`); `tags` too."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], title: str, parent: str | None, ref: str) -> Commit:
        seed = json.dumps([self.name, title, parent, ref, len(self.commits), time.time_ns()])
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, parent, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def find(self, revision: str) -> Commit | None:
        oid = self.refs.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        commit, found = self.find(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.find(revision)
        assert commit is not None, f"{self.name} has no revision {revision}"
        return {path: blob.content for path, blob in commit.files.items()}

    def info(self, commit: Commit) -> dict[str, Any]:
        return {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }


@dataclass
class Fault:
    """What goes wrong with the requests whose "METHOD path" matches.

    `action` is a status code (with `body` for a message), `truncate` (half of the body, then the connection
    closes), `stall` (half of the body, then no more), `flip` (one bit in the middle of
    the body), `drop` (no answer) or `lie` (the answer is `body`, with a length of its own).
    """

    action: int | str
    pattern: re.Pattern[str]
    times: int | None = None
    body: bytes = b""

    def takes(self, request: str) -> bool:
        if self.times == 0 or not self.pattern.search(request):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Answer(Exception):
    """Ends a request early with this answer."""

    def __init__(
        self, status: int, message: str = "", code: str = "", body: Any = None, **headers: str
    ) -> None:
        super().__init__(status, message)
        self.status, self.body = status, {"error": message} if body is None else body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if message:
            self.headers["X-Error-Message"] = message
        if code:
            self.headers["X-Error-Code"] = code


class HubServer:
    """The server. `tokens` maps access tokens to user names.

    `requests` lists the requests as "METHOD /path", without the query; `authorizations` what each sent.
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        self.tokens = dict(tokens)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        self.lock = threading.RLock()
        self._server: _Server | None = None
        # The port is taken at once, so that `url` is known before anything listens.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "HubServer":
        """Serve; also again after `stop`, on the same port."""
        if self._socket.fileno() == -1:
            self._socket = socket.create_server(("127.0.0.1", self.port))
        self._server = _Server(self, self._socket)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Dead: connections are refused, open ones are cut."""
        if self._server is not None:
            self._server.stopping.set()
            self._server.shutdown()
            self._server.close_connections()
            self._server = None
        self._socket.close()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget repositories, faults and the log of requests."""
        self.repositories.clear()
        self.lfs.clear()
        self.faults.clear()
        self.forget_requests()

    def forget_requests(self) -> None:
        self.requests.clear()
        self.authorizations.clear()

    def add_fault(
        self,
        action: int | str,
        method: str = "",
        path: str = "",
        *,
        times: int | None = None,
        body: bytes = b"",
    ) -> None:
        """Switch a fault on for requests of `method` (all by default) whose path matches the regex `path`."""
        pattern = re.compile(rf"^{method or '[A-Z]+'} /.*{path}")
        self.faults.append(Fault(action, pattern, times, body))

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def create(self, name: str, kind: str = "model", private: bool = False) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit({".gitattributes": Blob(b"", False)}, "initial commit", None, "main")
        return repository

    def put(
        self, name: str, files: dict[str, bytes], *, kind: str = "model", private: bool = False
    ) -> Repository:
        """Add a commit with `files`, as if somebody had pushed it; the repository is made if need be."""
        if (kind, name) not in self.repositories:
            self.create(name, kind, private)
        repository = self.repository(name, kind)
        head = repository.history()[0]
        blobs = {path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        repository.commit({**head.files, **blobs}, "put", head.oid, "main")
        return repository


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, listening: socket.socket) -> None:
        super().__init__(("127.0.0.1", hub.port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.hub = hub
        self.open: set[socket.socket] = set()
        self.stopping = threading.Event()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""

    def close_connections(self) -> None:
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


Route = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    """Declare a handler. In `pattern`, {T} is the kind of repository, {R} its name, {D} the url's prefix."""
    pattern = pattern.replace("{T}", r"(?P<kind>models|datasets|spaces)").replace(
        "{R}", r"(?P<name>[^/]+/[^/]+?)"
    )
    pattern = pattern.replace("{D}", r"(?:(?P<kind>datasets|spaces)/)?")
    compiled = re.compile(f"^{pattern}$")

    def add(function: Route) -> Route:
        ROUTES.extend((method, compiled, function) for method in methods.split("|"))
        return function

    return add


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, ValueError):  # hung up, or shut down under our feet
            return super().handle_one_request()
        self.close_connection = True

    def do_GET(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.fault: Fault | None = None
        request = f"{self.command} {url.path}"
        with hub.lock:
            hub.requests.append(request)
            hub.authorizations.append(self.headers.get("Authorization") or "")
            self.fault = next((fault for fault in hub.faults if fault.takes(request)), None)
            try:
                if self.fault is not None and isinstance(self.fault.action, int):
                    said = self.fault.body.decode() or f"the test's fault {self.fault.action}"
                    raise Answer(self.fault.action, said)
                answer = self._dispatch(url.path)
            except Answer as early:
                answer = early
        self._send(answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _dispatch(self, path: str) -> Answer:
        for method, pattern, function in ROUTES:
            match = pattern.match(path)
            if method == self.command and match:
                return Answer(
                    200, body=function(self, **{k: unquote(v or "") for k, v in match.groupdict().items()})
                )
        raise Answer(404, f"no such page: {self.command} {path}")

    def _send(self, answer: Answer) -> None:
        action = self.fault.action if self.fault else None
        if action == "drop":
            self.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        if action == "lie" and self.fault:
            body = self.fault.body
        if action == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(answer.status)
        self.send_header(
            "Content-Type",
            "application/octet-stream" if isinstance(answer.body, bytes) else "application/json",
        )
        headers = {"Content-Length": str(len(body)), **answer.headers}
        if action == "lie":
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            sent = {"truncate": len(body) // 2, "stall": 0 if self.headers.get("Range") else len(body) // 2}
            self.wfile.write(body[: sent.get(str(action), len(body))])
        if action == "stall":
            self.wfile.flush()
            self.server.stopping.wait(timeout=60)
        if action in ("truncate", "stall"):
            self.close_connection = True

    # What the routes use

    def user(self, required: bool = False) -> str | None:
        header = self.headers.get("Authorization") or ""
        if not header and not required:
            return None
        name = self.server.hub.tokens.get(header.removeprefix("Bearer "))
        if name is None:
            raise Answer(401, BAD_TOKEN if header else "Log in first")
        return name

    def json(self) -> Any:
        return json.loads(self.content or b"{}")

    def found(self, kind: str, name: str, write: bool = False) -> Repository:
        """The repository; 401, 403 or 404 as the Hub answers them."""
        user = self.user(required=write)
        repository = self.server.hub.repositories.get((KINDS.get(kind or "models", kind), name))
        owner = name.split("/")[0]
        if repository is None or (repository.private and user != owner):
            raise Answer(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise Answer(403, f"{user} may not write to {name}")
        return repository

    def found_commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


# Accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(self: _Handler) -> Any:
    return {
        "type": "user",
        "name": self.user(required=True),
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
    }


@route("POST", "/api/repos/create")
def create_repository(self: _Handler) -> Any:
    hub, values, user = self.server.hub, self.json(), self.user(required=True)
    owner = values.get("organization") or user
    name, kind = f"{owner}/{values['name']}", values.get("type") or "model"
    prefix = "" if kind == "model" else f"{kind}s/"
    page = {"url": f"{hub.url}/{prefix}{name}", "name": name, "id": name}
    if owner != user:
        raise Answer(403, f"{user} may not create a repository of {owner}")
    if (kind, name) in hub.repositories:
        raise Answer(409, "You already created this repo", body=page)
    hub.create(name, kind, private=values.get("visibility") == "private" or bool(values.get("private")))
    return page


@route("GET", "/api/{T}/{R}/auth-check(?P<write>/write)?")
def authorization_check(self: _Handler, kind: str, name: str, write: str) -> Any:
    self.found(kind, name, write=bool(write))
    return {}


@route("DELETE", "/api/repos/delete")
def delete_repository(self: _Handler) -> Any:
    values, user = self.json(), self.user(required=True)
    name = f"{values.get('organization') or user}/{values['name']}"
    kind = values.get("type") or "model"
    repository = self.found(f"{kind}s", name, write=True)
    del self.server.hub.repositories[repository.kind, name]
    return {}


@route("PUT", "/api/{T}/{R}/settings")
def settings(self: _Handler, kind: str, name: str) -> Any:
    repository = self.found(kind, name, write=True)
    repository.private = self.json().get("visibility") == "private"
    return {"private": repository.private}


@route("POST", "/api/validate-yaml")
def validate_yaml(self: _Handler) -> Any:
    return {"errors": [], "warnings": []}


@route("GET", r"/api/{T}/{R}(?:/revision/(?P<revision>[^/]+))?")
def repository_info(self: _Handler, kind: str, name: str, revision: str) -> Any:
    repository = self.found(kind, name)
    return repository.info(self.found_commit(repository, revision or "main"))


@route("GET", "/api/{T}/{R}/refs")
def references(self: _Handler, kind: str, name: str) -> Any:
    repository = self.found(kind, name)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"{prefix}{n}", "targetCommit": oid} for n, oid in names.items()]

    branches = {n: oid for n, oid in repository.refs.items() if not n.startswith("refs/")}
    pull_requests = {n: oid for n, oid in repository.refs.items() if n.startswith("refs/")}
    return {
        "branches": listed(branches, "refs/heads/"),
        "tags": listed(repository.tags, "refs/tags/"),
        "converts": [],
        "pullRequests": listed(pull_requests, ""),
    }


@route("GET", "/api/{T}/{R}/commits/(?P<revision>[^/]+)")
def commits(self: _Handler, kind: str, name: str, revision: str) -> Any:
    repository = self.found(kind, name)
    self.found_commit(repository, revision)
    return [
        {"id": c.oid, "title": c.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
        for c in repository.history(revision)
    ]


@route("POST|DELETE", "/api/{T}/{R}/branch/(?P<branch>[^/]+)")
def branch(self: _Handler, kind: str, name: str, branch: str) -> Any:
    repository = self.found(kind, name, write=True)
    if self.command == "DELETE":
        repository.refs.pop(branch, None)
        return {}
    if branch in repository.refs:
        raise Answer(409, f"Reference already exists: {branch}")
    start = self.found_commit(repository, self.json().get("startingPoint") or "main")
    repository.refs[branch] = start.oid
    return {}


@route("POST|DELETE", "/api/{T}/{R}/tag/(?P<revision>[^/]+)")
def tag(self: _Handler, kind: str, name: str, revision: str) -> Any:
    repository = self.found(kind, name, write=True)
    if self.command == "DELETE":
        if repository.tags.pop(revision, None) is None:
            raise Answer(404, f"no such tag: {revision}", "RevisionNotFound")
        return {}
    new = self.json()["tag"]
    if new in repository.tags:
        raise Answer(409, f"Tag reference exists already: {new}")
    repository.tags[new] = self.found_commit(repository, revision).oid
    return {}


# Files


@route("GET", r"/api/{T}/{R}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(self: _Handler, kind: str, name: str, revision: str, folder: str) -> Any:
    commit = self.found_commit(self.found(kind, name), revision)
    inside = {p: b for p, b in commit.files.items() if not folder or p.startswith(f"{folder}/")}
    if folder and not inside:
        raise Answer(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit.oid)
    entries: list[dict[str, Any]] = []
    recursive = self.query.get("recursive", "").lower() == "true"
    depth = folder.count("/") + 1 if folder else 0
    for path, blob in sorted(inside.items()):
        parts = path.split("/")
        for length in range(depth + 1, len(parts)):
            directory = "/".join(parts[:length])
            if all(entry["path"] != directory for entry in entries) and (recursive or length == depth + 1):
                entries.append({"type": "directory", "path": directory, "oid": "0" * 40, "size": 0})
        if recursive or len(parts) == depth + 1:
            entries.append(blob.entry(path))
    return entries


@route("POST", "/api/{T}/{R}/paths-info/(?P<revision>[^/]+)")
def paths_info(self: _Handler, kind: str, name: str, revision: str) -> Any:
    commit = self.found_commit(self.found(kind, name), revision)
    return [commit.files[path].entry(path) for path in self.json()["paths"] if path in commit.files]


@route("GET|HEAD", r"/{D}{R}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(self: _Handler, kind: str, name: str, revision: str, path: str) -> Any:
    commit = self.found_commit(self.found(kind, name), revision)
    if path not in commit.files:
        raise Answer(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    blob = commit.files[path]
    headers = {"X_Repo_Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept_Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X_Linked_Etag": f'"{blob.sha256}"', "X_Linked_Size": str(len(blob.content))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
    if not wanted:
        raise Answer(200, body=blob.content, **headers)
    start, last = int(wanted[1]), min(int(wanted[2] or len(blob.content)), len(blob.content) - 1)
    headers["Content_Range"] = f"bytes {start}-{last}/{len(blob.content)}"
    raise Answer(206, body=blob.content[start : last + 1], **headers)


# Commits


@route("POST", "/api/{T}/{R}/preupload/(?P<revision>[^/]+)")
def preupload(self: _Handler, kind: str, name: str, revision: str) -> Any:
    commit = self.found_commit(self.found(kind, name, write=True), revision)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
        values = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        present = commit.files.get(path)
        return values | ({"oid": present.sha256 if present.lfs else present.oid} if present else {})

    return {"files": [answer(asked) for asked in self.json()["files"]]}


@route("POST", r"/{D}{R}\.git/info/lfs/objects/batch")
def lfs_batch(self: _Handler, kind: str, name: str) -> Any:
    hub = self.server.hub
    self.found(kind, name, write=True)

    def answer(wanted: dict[str, Any]) -> dict[str, Any]:
        values = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in hub.lfs:
            return values
        upload, verify = (f"{hub.url}/lfs-{verb}/{wanted['oid']}" for verb in ("upload", "verify"))
        actions = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
        return values | {"actions": actions}

    return {"transfer": "basic", "objects": [answer(wanted) for wanted in self.json()["objects"]]}


@route("PUT", "/lfs-upload/(?P<oid>[0-9a-f]{64})")
def lfs_upload(self: _Handler, oid: str) -> Any:
    if hashlib.sha256(self.content).hexdigest() != oid:
        raise Answer(400, "the content's sha256 is not the name of the object")
    self.server.hub.lfs[oid] = self.content
    return {}


@route("POST", "/lfs-verify/(?P<oid>[0-9a-f]{64})")
def lfs_verify(self: _Handler, oid: str) -> Any:
    if len(self.server.hub.lfs.get(oid, b"")) != self.json()["size"]:
        raise Answer(404, "no such object")
    return {}


def _changed(hub: HubServer, files: dict[str, Blob], lines: Iterator[dict[str, Any]]) -> dict[str, Blob]:
    """The files of a commit after its operations."""
    files = dict(files)
    for line in lines:
        key, value = line["key"], line["value"]
        path = value.get("path", "")
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in hub.lfs:
                raise Answer(400, f"{path}: its LFS object was not uploaded")
            files[path] = Blob(hub.lfs[value["oid"]], True)
        elif key == "deletedFile":
            files.pop(path, None)
        elif key == "deletedFolder":
            files = {p: b for p, b in files.items() if not p.startswith(path.rstrip("/") + "/")}
        else:
            raise Answer(400, f"unknown operation {key}")
    return files


@route("POST", "/api/{T}/{R}/commit/(?P<revision>[^/]+)")
def commit(self: _Handler, kind: str, name: str, revision: str) -> Any:
    hub, repository = self.server.hub, self.found(kind, name, write=True)
    parent = self.found_commit(repository, revision)
    header, *operations = (json.loads(line) for line in self.content.splitlines() if line)
    expected = header["value"].get("parentCommit")
    if expected and expected != parent.oid:
        raise Answer(412, "A commit has happened since. Please refresh and try again.")
    files = _changed(hub, parent.files, iter(operations))
    ref = revision
    answer: dict[str, Any] = {}
    if self.query.get("create_pr") in ("1", "true", "True"):
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
        ref = f"refs/pr/{number}"
        answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
    made = repository.commit(files, header["value"]["summary"], parent.oid, ref)
    return {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{hub.url}/{name}/commit/{made.oid}",
        **answer,
    }
