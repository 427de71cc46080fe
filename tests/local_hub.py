"""A Hugging Face Hub on this machine: enough of its protocol for the real client to publish and load models.

Repositories live in memory. Files always travel inside the commit (`uploadMode: regular`), so clients must have
`HF_HUB_DISABLE_XET=1`. `python -m tests.local_hub 8000` serves until it is interrupted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_local_write"  # may do everything
READ_TOKEN = "hf_local_read"  # may read public repositories only
USER = "tester"


@dataclass
class Commit:
    title: str
    files: dict[str, bytes]
    oid: str = field(init=False)

    def __post_init__(self) -> None:
        content = json.dumps([self.title, {path: blob_id(data) for path, data in sorted(self.files.items())}])
        self.oid = hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b""})])
    branches: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = self.commits[0]

    def at(self, revision: str) -> Commit:
        found = self.branches.get(revision) or next((c for c in self.commits if c.oid == revision), None)
        if found is None:
            raise Refused(404, "Invalid rev id: " + revision, "RevisionNotFound")
        return found


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


def blob_id(data: bytes) -> str:
    """The id git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """The server; `repos` holds what was published. Use it as a context manager."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repos: dict[str, Repo] = {}
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: object) -> dict[str, str]:
        """Variables that make a process use this Hub, with `home` as its folder of tokens and downloads."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def __enter__(self) -> LocalHub:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: object) -> None:
        """Stays silent: the tests look at what was published."""

    def do_GET(self) -> None:
        self.answer(GET_ROUTES)

    def do_HEAD(self) -> None:
        self.answer(GET_ROUTES)

    def do_POST(self) -> None:
        self.answer(POST_ROUTES)

    def answer(self, routes: dict[str, str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        try:
            for pattern, name in routes.items():
                if match := re.fullmatch(pattern, path):
                    # split first, decode afterwards: a revision may contain an encoded slash
                    arguments = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    content = {"body": body} if routes is POST_ROUTES else {}
                    with self.server.lock:
                        status, answer, headers = getattr(self, name)(**arguments, **content)
                    break
            else:
                raise Refused(404, f"No such page: {path}")
        except Refused as refused:
            status, answer, headers = refused.status, {"error": str(refused)}, refused.headers
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # a client may leave before it has read everything
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def check_write(self) -> None:
        if self.token() != TOKEN:
            status = 403 if self.token() == READ_TOKEN else 401
            raise Refused(status, "You do not have write access" if status == 403 else "Invalid username or password.")

    def repo(self, repo_id: str) -> Repo:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and self.token() != TOKEN):  # a private repository looks like none
            raise Refused(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        return repo

    def whoami(self) -> tuple:
        if self.token() not in (TOKEN, READ_TOKEN):
            raise Refused(401, "Invalid username or password.")
        return 200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}, {}

    def create_repo(self, body: bytes) -> tuple:
        self.check_write()
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repos:
            return 409, answer | {"error": "You already created this model repo"}, {}
        # `private` is how clients before 2.0 ask for it
        self.server.repos[repo_id] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, answer, {}

    def validate_yaml(self, body: bytes) -> tuple:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if match is None:
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, {}
        try:
            metadata = yaml.safe_load(match[1])
            json.dumps(metadata, allow_nan=False)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def preupload(self, repo_id: str, revision: str, body: bytes) -> tuple:
        self.check_write()
        present = self.repo(repo_id).at(revision).files
        files = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": blob_id(present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}, {}

    def commit(self, repo_id: str, revision: str, body: bytes) -> tuple:
        self.check_write()
        repo = self.repo(repo_id)
        if revision not in repo.branches:
            raise Refused(404, "Invalid rev id: " + revision, "RevisionNotFound")
        files, title = dict(repo.branches[revision].files), ""
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise Refused(400, f"This Hub does not know the operation {other}")
        commit = Commit(title, files)
        repo.commits.append(commit)
        repo.branches[revision] = commit
        url = f"{self.server.endpoint}/{repo_id}/commit/{commit.oid}"
        return 200, {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}, {}

    def create_branch(self, repo_id: str, branch: str, body: bytes) -> tuple:
        self.check_write()
        repo = self.repo(repo_id)
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = repo.at(json.loads(body or b"{}").get("startingPoint") or "main")
        return 200, {}, {}

    def model_info(self, repo_id: str, revision: str = "") -> tuple:
        repo = self.repo(repo_id)
        commit = repo.at(revision or "main")
        files = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"id": repo_id, "modelId": repo_id, "private": repo.private, "sha": commit.oid, "siblings": files}
        return 200, info, {}

    def tree(self, repo_id: str, revision: str, folder: str = "") -> tuple:
        commit = self.repo(repo_id).at(revision)
        inside = {p: data for p, data in sorted(commit.files.items()) if not folder or p.startswith(folder + "/")}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
        entries = [{"type": "file", "path": p, "size": len(d), "oid": blob_id(d)} for p, d in inside.items()]
        return 200, entries, {"X-Repo-Commit": commit.oid}

    def paths_info(self, repo_id: str, revision: str, body: bytes) -> tuple:
        files, asked = self.repo(repo_id).at(revision).files, parse_qs(body.decode()).get("paths", [])
        with suppress(ValueError):
            asked = json.loads(body)["paths"]
        found = [
            {"type": "file", "path": p, "size": len(files[p]), "oid": blob_id(files[p])} for p in asked if p in files
        ]
        inside = [p for p in asked if any(file.startswith(f"{p}/") for file in files)]
        return 200, [*found, *({"type": "directory", "path": p, "oid": "0" * 40} for p in inside)], {}

    def refs(self, repo_id: str) -> tuple:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.oid}
            for name, commit in self.repo(repo_id).branches.items()
        ]
        return 200, {"branches": branches, "converts": [], "tags": []}, {}

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple:
        commit = self.repo(repo_id).at(revision)
        version = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound", **version)
        data = commit.files[path]
        headers = {**version, "ETag": f'"{blob_id(data)}"', "Content-Type": "application/octet-stream"}
        if path.endswith(".safetensors"):  # large files are known by the hash of their content
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return 200, data, headers


REPO = r"/api/(?:models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
GET_ROUTES = {
    r"/api/whoami-v2": "whoami",
    REPO: "model_info",
    REPO + r"/revision/(?P<revision>[^/]+)": "model_info",
    REPO + r"/refs": "refs",
    REPO + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?": "tree",
    r"/(?:datasets/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
}
POST_ROUTES = {
    r"/api/repos/create": "create_repo",
    r"/api/validate-yaml": "validate_yaml",
    REPO + r"/paths-info/(?P<revision>[^/]+)": "paths_info",
    REPO + r"/preupload/(?P<revision>[^/]+)": "preupload",
    REPO + r"/commit/(?P<revision>[^/]+)": "commit",
    REPO + r"/branch/(?P<branch>[^/]+)": "create_branch",
}


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """A running `LocalHub` that this process's `huggingface_hub` uses; other processes need `.environment(home)`."""
    from huggingface_hub import HfApi, constants

    # shared instances keep the endpoint they were made with, which is asked anew here
    endpoint = property(lambda api: constants.ENDPOINT, lambda api, value: api.__dict__.update(endpoint=value))
    with LocalHub() as hub:
        for name, value in hub.environment(tmp_path / "hf_home").items():
            monkeypatch.setenv(name, value)
        # the client has read its environment when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(HfApi, "endpoint", endpoint, raising=False)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home/hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf_home/token"))
        yield hub


if __name__ == "__main__":
    with LocalHub(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        print(f"HF_ENDPOINT={server.endpoint} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        with suppress(KeyboardInterrupt):
            server.thread.join()
