"""A small Hub in this process: it speaks both ways of the protocol to the real client, and misbehaves when told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

TOKEN = "hf_a_secret"


def git_hash(content: bytes) -> str:
    """What git, and so the Hub, calls a file by."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


Fault = int | Literal["cut", "reset", "corrupt", "stall"]
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>.+)/(?P<name>[^/]+)")
_COMMIT_OF = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<task>preupload|commit|branch)/(?P<revision>.+)")
_REPOSITORY = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Request:
    method: str
    path: str
    host: str
    authorization: str | None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early, as some tests make it do, is no news."""


@dataclass
class HubServer:
    """Repositories of files. A ``.safetensors`` file is a large one: its content comes from another origin.

    ``faults`` maps (method, end of the path) to what happens instead: an HTTP status, a body cut in the middle with
    a proper end ("cut") or a TCP reset ("reset"), a body that stops in the middle, or the answer to an upload that
    does not come, until ``released`` is set ("stall"), or a body of the right length with other bytes ("corrupt").
    Only who has ``token``, where there is one, may create and change repositories, or read ``private`` ones.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    uploads: dict[str, bytes] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    etag: Callable[[bytes], str] = git_hash
    token: str | None = None
    tls: ssl.SSLContext | None = None
    after_get: Callable[[str], None] | None = None
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def publish(self, repository: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit the files and move ``revision`` there; the commit's hash."""
        digest = hashlib.sha1(repository.encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        commit = digest.hexdigest()
        self.repositories.setdefault(repository, {})[commit] = dict(files)
        self.references[repository, revision] = commit
        return commit

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds at a revision, nothing where there is none."""
        commit = self.references.get((repository, revision), revision)
        return self.repositories.get(repository, {}).get(commit, {})

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.requests if request.method == method]

    def blob(self, sha256: str) -> bytes:
        contents = (
            content
            for commits in self.repositories.values()
            for files in commits.values()
            for content in files.values()
        )
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == sha256)


def guarded_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """As a fixture, a server that lets in who has the token; the environment has it."""
    # without the client's other protocol for large files, which no server in this process could speak
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(token=TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in ``hub.requests``, not printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        if self.hub.after_get is not None:
            self.hub.after_get(self.path)

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, self.query = unquote(self.path).partition("?")
        sent = self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, path, self.headers["Host"], sent))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        faults = [
            fault for (method, end), fault in self.hub.faults.items() if method == self.command and path.endswith(end)
        ]
        fault = faults[0] if faults else None
        changes = self.command in ("POST", "DELETE")
        known = self.hub.token is None or sent == f"Bearer {self.hub.token}"
        if isinstance(fault, int):
            self._send(fault, self.hub.headers, b"")
        elif path.startswith("/lfs/"):
            self._large_file(path.removeprefix("/lfs/"), fault)
        elif not known and (changes or any(f"/{name}/" in f"{path}/" for name in self.hub.private)):
            self._send(401, {}, b"")
        elif self.command == "POST":
            self._change(path)
        elif self.command == "DELETE":
            wanted = json.loads(self.body)
            self.hub.repositories.pop(f"{wanted['organization']}/{wanted['name']}")
            self._send(200, {}, b"")
        else:
            self._resolve(path, fault)

    def _large_file(self, sha256: str, fault: Fault | None) -> None:
        if self.command == "PUT":
            if fault == "stall":
                self.hub.released.wait()
            self.hub.uploads[sha256] = self.body
            return self._send(200, {}, b"")
        return self._send_content(self.hub.blob(sha256), {}, fault)

    def _change(self, path: str) -> None:
        """The part of the protocol that creates repositories, branches and commits."""
        match, batch = _COMMIT_OF.fullmatch(path), _BATCH.fullmatch(path)
        if path == "/api/validate-yaml":
            return self._send_json(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(self.body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in self.hub.repositories else 200
            if status == 200 and (wanted.get("private") or wanted.get("visibility") == "private"):
                self.hub.private.add(name)
            self.hub.repositories.setdefault(name, {})
            return self._send_json(status, {"url": f"{self.hub.endpoint}/{name}"})
        if batch:
            return self._send_json(
                200, {"objects": [self._upload_of(item) for item in json.loads(self.body)["objects"]]}
            )
        if match is None or match["repo"] not in self.hub.repositories:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        if match["task"] == "branch":
            taken = (match["repo"], match["revision"]) in self.hub.references
            self.hub.references.setdefault((match["repo"], match["revision"]), "")
            return self._send_json(409 if taken else 201, {})
        if match["task"] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            return self._send_json(200, {"files": modes})
        return self._commit(match["repo"], match["revision"])

    def _upload_of(self, item: dict[str, Any]) -> dict[str, Any]:
        href = f"http://localhost:{self.hub.port}/lfs/{item['oid']}"
        return {**item, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repository: str, revision: str) -> None:
        create_pr = "create_pr=1" in self.query
        reference = "refs/pr/1" if create_pr else revision
        files = dict(self.hub.files(repository, revision))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.publish(repository, files, reference)
        url = f"{self.hub.endpoint}/{repository}"
        answer = {"commitUrl": f"{url}/commit/{commit}", "commitOid": commit, "success": True}
        self._send_json(200, {**answer, "pullRequestUrl": f"{url}/discussions/1"} if create_pr else answer)

    def _resolve(self, path: str, fault: Fault | None) -> None:
        known = _REPOSITORY.fullmatch(path)
        if known and known["repo"] in self.hub.repositories:
            return self._send_json(200, {"id": known["repo"], "private": known["repo"] in self.hub.private})
        match = _RESOLVE.fullmatch(path)
        commits = self.hub.repositories.get(match["repo"]) if match else None
        if match is None or commits is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        commit = self.hub.references.get((match["repo"], match["revision"]), match["revision"])
        if commit not in commits:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        content = commits[commit].get(match["name"])
        if content is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"")
        if not match["name"].endswith(".safetensors"):
            return self._send_content(content, {"X-Repo-Commit": commit, "ETag": f'"{self.hub.etag(content)}"'}, fault)
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(content)),
            # another origin than the endpoint's 127.0.0.1, as the Hub's storage is
            "Location": f"http://localhost:{self.hub.port}/lfs/{sha256}",
        }
        return self._send(302, headers, b"")

    def _send_content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = content[start:]
        if fault == "corrupt":
            body = bytes(len(body))
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        broken = fault in ("cut", "reset", "stall")
        self._send(206 if start else 200, headers, body, len(body) // 2 if broken else len(body))
        if fault == "stall":
            self.wfile.flush()
            self.hub.released.wait()
        if fault == "reset":
            # with a linger time of zero, closing sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if broken:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def _send_json(self, status: int, data: object) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, sent: int | None = None) -> None:
        """Headers that announce the whole body, and the first ``sent`` bytes of it."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
