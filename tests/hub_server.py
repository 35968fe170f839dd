"""A small Hub in this process that speaks the download protocol to the real client, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

Fault = int | Literal["cut", "reset", "corrupt"]
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Request:
    method: str
    path: str
    host: str
    authorization: str | None


@dataclass
class HubServer:
    """Repositories of files. A ``.safetensors`` file is a large one: its content comes from another origin.

    ``faults`` maps (method, end of the path) to what happens instead: an HTTP status, a body cut in the middle with
    a proper end ("cut") or a TCP reset ("reset"), or a body of the right length with other bytes ("corrupt").
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    after_get: Callable[[str], None] | None = None

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, repository: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit the files and move ``revision`` there; the commit's hash."""
        digest = hashlib.sha1(repository.encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        commit = digest.hexdigest()
        self.repositories.setdefault(repository, {})[commit] = dict(files)
        self.references[repository, revision] = commit
        return commit

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

    def _answer(self) -> None:
        path = unquote(self.path)
        self.hub.requests.append(Request(self.command, path, self.headers["Host"], self.headers.get("Authorization")))
        faults = [
            fault for (method, end), fault in self.hub.faults.items() if method == self.command and path.endswith(end)
        ]
        fault = faults[0] if faults else None
        if isinstance(fault, int):
            self._send(fault, {}, b"")
        elif path.startswith("/lfs/"):
            self._send_content(self.hub.blob(path.removeprefix("/lfs/")), {}, fault)
        else:
            self._resolve(path, fault)

    def _resolve(self, path: str, fault: Fault | None) -> None:
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
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            return self._send_content(content, headers, fault)
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
        sent = len(body) // 2 if fault in ("cut", "reset") else len(body)
        self._send(206 if start else 200, headers, body, sent)
        if fault == "reset":
            # with a linger time of zero, closing sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("cut", "reset"):
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, sent: int | None = None) -> None:
        """Headers that announce the whole body, and the first ``sent`` bytes of it."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
