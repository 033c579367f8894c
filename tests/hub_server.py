"""A Hub on loopback: what huggingface_hub, transformers and datasets need of the real one to push and pull.

It is written from what the client asks for, so it proves the client's side of a conversation and nothing about the
real Hub. Repositories are lists of commits, each a whole set of files; branches and tags are names of commits.
"""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from processes import python

TOKEN = "hf_loopback"
REPOSITORY = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = repr((len(self.commits), sorted((path, git_id(data)) for path, data in files.items())))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, url = self.server, urlsplit(self.path)
        self.path_only, self.query = unquote(url.path), parse_qs(url.query)
        if hub.broken == "half-way" and "/commit/" in self.path_only:
            self.rfile.read(10_000)  # a part of the first files
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.body = self._read()
        with hub.lock:
            hub.requests.append((self.command, self.path_only))
            for pattern, answer in ROUTES:
                if match := re.fullmatch(pattern, self.path_only):
                    return answer(self, **{k: v for k, v in match.groupdict().items() if v is not None})
        self.refuse(404, "EntryNotFound", f"no route {self.path_only}")

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # ---- answers

    def answer(self, content, status=200, headers=(), kind="application/json"):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, repo_id: str) -> Repository | None:
        """The repository, or None after refusing: one that is missing and one that is hidden look alike."""
        found = self.server.repositories.get((kind.rstrip("s"), repo_id))
        if found is None or (found.private and not self.known):
            self.refuse(401 if not self.known else 404, "RepoNotFound", "Repository not found")
            return None
        return found

    # ---- routes

    def create(self):
        if not self.known:
            return self.refuse(401, "", "Invalid username or password.")
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        repositories, prefix = self.server.repositories, "" if kind == "model" else f"{kind}s/"
        if (kind, repo_id) in repositories:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{prefix}{repo_id}"}, 409)
        repositories[kind, repo_id] = Repository(
            private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        repositories[kind, repo_id].commit("main", {".gitattributes": b""})
        self.answer({"url": f"{self.server.url}/{prefix}{repo_id}", "name": repo_id})

    def who(self):
        if not self.known:
            return self.refuse(401, "", "Invalid username or password.")
        self.answer(
            {"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        )

    def validate(self):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, kind, id, revision):
        if self.repository(kind, id) is None:
            return
        files = json.loads(self.body)["files"]
        answers = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
        self.answer({"files": answers})

    def commit(self, kind, id, revision):
        repository = self.repository(kind, id)
        if repository is None:
            return
        if not self.known:
            return self.refuse(401, "", "Invalid username or password.")
        if self.server.broken == "at the end":  # the connection breaks after all was sent and before anything was kept
            self.close_connection = True
            return self.connection.close()
        operations = [json.loads(line) for line in self.body.splitlines() if line]
        head = next(op["value"] for op in operations if op["key"] == "header")
        if head.get("parentCommit") not in (None, repository.refs[revision]):
            return self.refuse(412, "", "The branch has moved on since parentCommit")
        files = dict(repository.commits[repository.refs[revision]])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
        sha = repository.commit(revision, files)
        self.answer(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{id}/commit/{sha}", "hookOutput": ""}
        )

    def tag(self, kind, id, revision):
        repository, name = self.repository(kind, id), json.loads(self.body)["tag"]
        if repository is None:
            return
        if name in repository.tags:
            return self.refuse(409, "", "Tag exists")
        repository.tags[name] = repository.resolve(revision)
        self.answer({})

    def branch(self, kind, id, revision):
        repository = self.repository(kind, id)
        if repository is None:
            return
        if revision in repository.refs:
            return self.refuse(409, "", "Branch exists")
        repository.refs[revision] = repository.refs["main"]
        self.answer({})

    def info(self, kind, id, revision="main"):
        repository = self.repository(kind, id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        files = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        about = {"_id": "0", "id": id, "modelId": id, "sha": sha, "private": repository.private, "siblings": files}
        about |= {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        about |= {"lastModified": "2025-01-01T00:00:00.000Z", "createdAt": "2025-01-01T00:00:00.000Z"}
        self.answer(about)

    def tree(self, kind, id, revision, folder=""):
        repository = self.repository(kind, id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        start, entries = f"{folder}/" if folder else "", {}
        for path, data in sorted(repository.commits[sha].items()):
            if not path.startswith(start):
                continue
            inner, deep = path[len(start) :], self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            if "/" in inner and not deep:
                name = start + inner.split("/")[0]
                entries[name] = {"type": "directory", "path": name, "oid": git_id(name.encode()), "size": 0}
            else:
                entries[path] = {"type": "file", "path": path, "oid": git_id(data), "size": len(data)}
        if folder and not entries:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        self.answer(list(entries.values()))

    def paths_info(self, kind, id, revision):
        repository = self.repository(kind, id)
        if repository is None:
            return
        wanted = (
            json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
        )
        files = repository.commits[repository.resolve(revision)]
        found = [path for path in wanted if path in files]
        self.answer([{"type": "file", "path": p, "oid": git_id(files[p]), "size": len(files[p])} for p in found])

    def refs(self, kind, id):
        repository = self.repository(kind, id)
        if repository is None:
            return
        names = {"branches": ("heads", repository.refs), "tags": ("tags", repository.tags)}
        self.answer(
            {
                kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": s} for n, s in refs.items()]
                for kind, (where, refs) in names.items()
            }
            | {"converts": []}
        )

    def resolve(self, id, revision, path, kind="models"):
        repository = self.repository(kind, id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if path not in repository.commits[sha]:
            return self.answer(
                {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        data, status = repository.commits[sha][path], 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_id(data)}"', "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), int(part[2]) if part[2] else len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.answer(data, status, headers, "application/octet-stream")


KIND = r"/api/(?P<kind>models|datasets|spaces)/"
ROUTES = [
    (r"/api/whoami-v2", Handler.who),
    (r"/api/validate-yaml", Handler.validate),
    (r"/api/repos/create", Handler.create),
    (rf"/(?:(?P<kind>datasets|spaces)/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    (rf"{KIND}{REPOSITORY}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"{KIND}{REPOSITORY}/commit/(?P<revision>[^/]+)", Handler.commit),
    (rf"{KIND}{REPOSITORY}/tag/(?P<revision>[^/]+)", Handler.tag),
    (rf"{KIND}{REPOSITORY}/branch/(?P<revision>[^/]+)", Handler.branch),
    (rf"{KIND}{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (rf"{KIND}{REPOSITORY}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (rf"{KIND}{REPOSITORY}/refs", Handler.refs),
    (rf"{KIND}{REPOSITORY}/revision/(?P<revision>[^/]+)", Handler.info),
    (rf"{KIND}{REPOSITORY}", Handler.info),
]


class HubServer(ThreadingHTTPServer):
    """Serves `repositories` at `url`; `broken`: commits break off "half-way" or "at the end"."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.lock = f"http://127.0.0.1:{self.server_port}", threading.Lock()
        self.begin_anew()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def begin_anew(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken = ""


THE_HUB = cache(HubServer)
CACHE = tempfile.TemporaryDirectory(prefix="hub-clients-", ignore_cleanup_errors=True)


@contextmanager
def empty_hub():
    """A Hub without a repository, one at a time: all have one address, so that programs which read it are quick."""
    hub = THE_HUB()
    hub.begin_anew()
    yield hub


def client_environment(url: str) -> dict[str, str]:
    """Of a program whose Hub is at `url`; all of them share a cache, for the reason that `empty_hub` names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": CACHE.name, "HF_HUB_DISABLE_XET": "1"}
    return environment | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run_client(
    url: str, home: Path, what: str, *arguments, token: bool = True, program: str | None = None
) -> subprocess.CompletedProcess:
    """Run a script (a path) or code in a process of its own in the folder `home`, whose Hub is at `url`.

    The client reads its endpoint at import, so it cannot be told to another one in the tests' own process.
    """
    environment = client_environment(url) | ({"HF_TOKEN": TOKEN} if token else {})
    command = [what] if what.endswith(".py") else ["-c", what]
    return subprocess.run(
        [program or python(), *command, *map(str, arguments)],
        cwd=home, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
