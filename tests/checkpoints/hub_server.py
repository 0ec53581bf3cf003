"""The Hugging Face hub on this machine: what its client asks of it when it fetches the files of a model.

Metadata is public, large files are elsewhere (a redirect to storage, as for all of Git LFS), and a failure
has its code in a header.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt")
TOKEN = "hf_of_one_who_may"
EXPIRED, NARROW = "hf_of_last_year", "hf_for_other_things"
DENIED = {EXPIRED: (401, "Invalid credentials in Authorization header"), NARROW: (403, "Forbidden")}
"""By tokens that are good for nothing here, not even for what is public."""


@dataclass
class Repository:
    """Files by path, by revision. gated: they are for `TOKEN` alone."""

    revisions: dict[str, Mapping[str, bytes]]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The hash of a branch, a tag or a commit."""
        by_hash = {_commit(files): files for files in self.revisions.values()}
        if revision in by_hash:
            return revision
        return _commit(self.revisions[revision]) if revision in self.revisions else None

    def files(self, commit: str) -> Mapping[str, bytes]:
        return next(files for files in self.revisions.values() if _commit(files) == commit)


@dataclass
class Cut:
    """The connection ends after so many bytes of a file, so many times. reset: in no good order."""

    offset: int
    times: int
    reset: bool = False


@dataclass
class Asked:
    method: str
    path: str
    range: str | None


@dataclass
class Hub(AbstractContextManager["Hub"]):
    """`address` is for HF_ENDPOINT. asked: all requests in their order. cuts: by the names
    of files."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    cuts: dict[str, Cut] = field(default_factory=dict)
    stored: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def __enter__(self) -> Hub:
        self._servers = [_Server(self) for _ in ("hub", "storage")]
        self.address, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {
            asked.path.partition("/resolve/")[2].partition("/")[2]
            for asked in self.asked
            if "/resolve/" in asked.path
        }

    def elsewhere(self) -> list[Asked]:
        """What it was asked for as a proxy."""
        return [asked for asked in self.asked if asked.method == "CONNECT" or "://" in asked.path]

    def ranges(self) -> list[str]:
        return [asked.range for asked in self.asked if asked.range]


def unreachable() -> tuple[socket.socket, str]:
    """An address where nobody listens, for as long as the socket is open."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held, f"http://127.0.0.1:{held.getsockname()[1]}"


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _commit(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + b"\0" + hashlib.sha1(content).digest())
    return digest.hexdigest()


def _blob(content: bytes) -> str:
    """As Git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def shutdown_request(self, request: Any) -> None:
        """A connection to be reset must not first be ended in good order."""
        lingers, _ = struct.unpack("ii", request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        (self.close_request if lingers else super().shutdown_request)(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_GET(self) -> None:
        self.hub.asked.append(Asked(self.command, self.path, self.headers["Range"]))
        path = urlsplit(self.path).path
        if urlsplit(self.path).netloc:
            self._fail(502, "", "this is no proxy")
        elif denied := DENIED.get((self.headers["Authorization"] or "").removeprefix("Bearer ")):
            self._fail(denied[0], "", denied[1])
        elif found := re.fullmatch(r"/storage/(\w+)", path):
            self._send(*self.hub.stored[found[1]], {"ETag": f'"{found[1]}"'})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._answer_about(found[1], found[2], unquote(found[3]))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_with(found[1], unquote(found[2]), unquote(found[3]))
        else:
            self._fail(404, "", "not found")

    do_HEAD = do_GET
    do_CONNECT = do_GET

    def _found(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit; else it has said what is missing."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            status = (
                404 if self.headers["Authorization"] else 401
            )  # it does not tell strangers what is private
            self._fail(status, "RepoNotFound", "Repository not found")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _answer_about(self, name: str, what: str, revision: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        repository, commit = found
        files = repository.files(commit)
        if what == "tree":
            self._send_json([_entry(path, content) for path, content in sorted(files.items())])
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        gated = "manual" if repository.gated else False
        self._send_json({"id": name, "sha": commit, "private": False, "gated": gated, "siblings": siblings})

    def _answer_with(self, name: str, revision: str, path: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        repository, commit = found
        who = self.headers["Authorization"]
        if repository.gated and who != f"Bearer {TOKEN}":
            self._fail(403 if who else 401, "GatedRepo", f"Access to model {name} is restricted.")
            return
        content = repository.files(commit).get(path)
        about = {"X-Repo-Commit": commit}
        if content is None:
            self._fail(404, "EntryNotFound", "Entry not found", about)
        elif path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.stored[digest] = (path, content)
            about |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            about |= {"Location": f"{self.hub.storage}/storage/{digest}", "Content-Length": "0"}
            self._head(302, about)
        else:
            self._send(path, content, about | {"ETag": f'"{_blob(content)}"'})

    def _send(self, path: str, content: bytes, about: Mapping[str, str]) -> None:
        """The whole, or from the byte that is asked for; or, of a file that is cut off, a part."""
        start = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")) else 0
        headers = {"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes", **about}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, headers)
        if self.command == "HEAD":
            return
        cut = self.hub.cuts.get(path)
        if cut is not None and cut.times > 0:
            cut.times -= 1
            content = content[: cut.offset]
            self.close_connection = True
            if cut.reset:
                at_once = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.wfile.write(content[start:])

    def _send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str, about: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(about or {})}
        self._head(status, headers | {"X-Error-Code": code, "X-Error-Message": message})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the test asks what was asked."""


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry
