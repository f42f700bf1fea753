"""A hub on the loopback: a folder, served in the layout that `huggingface_hub` and `datasets` ask for."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "5" * 40
"""The one commit of every repository."""


@dataclass(kw_only=True)
class Hub:
    """``folder``: has `datasets/OWNER/NAME` and `models/OWNER/NAME`.

    ``cuts``: how many answers are to break off midway. ``gone``: names of files that are listed and not there.
    """

    folder: Path
    url: str = ""
    cuts: int = 0
    gone: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # bytes of content, by path in the folder

    def took(self, ending: str) -> int:
        """Bytes sent of the files whose names end so."""
        return sum(count for name, count in self.sent.items() if name.endswith(ending))


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub at a port of its own, until the body ends."""
    hub = Hub(folder=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def _answer(self, body: str = "") -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if found := re.fullmatch(r"/(datasets/)?([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            self._file((kind or "models/") + name, revision, file)
        elif found := re.fullmatch(
            r"/api/(datasets|models)/([\w-]+/[\w-]+)(?:/(revision|tree|paths-info)/([^/]+)(.*))?", path
        ):
            kind, name, what, revision, rest = found.groups()
            self._api(f"{kind}/{name}", what, revision, rest, parse_qs(body or url.query))
        else:
            self._error("EntryNotFound")

    def _api(self, repo: str, what: str | None, revision: str | None, rest: str, form: dict[str, list[str]]) -> None:
        root = self.hub.folder / repo
        if not root.is_dir():
            self._error("RepoNotFound")
        elif revision not in (SHA, "main", None):
            self._error("RevisionNotFound")
        elif what == "tree":
            base = root / rest.strip("/")
            deep = form.get("recursive", [""])[0].lower() in ("true", "1")
            found = sorted(base.rglob("*") if deep else base.glob("*"))
            self._json([self._entry(root, path) for path in found]) if base.is_dir() else self._error("EntryNotFound")
        elif what == "paths-info":
            wanted = [root / path for path in form.get("paths", [])]
            self._json([self._entry(root, path) for path in wanted if path.exists()])
        else:
            names = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*")) if file.is_file()]
            identity = {"_id": "0", "id": repo.split("/", 1)[1], "sha": SHA, "private": False, "disabled": False}
            times = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
            counts = {"tags": [], "downloads": 0, "likes": 0, "gated": False}
            self._json({**identity, **times, **counts, "siblings": [{"rfilename": name} for name in names]})

    def _entry(self, root: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}

    def _file(self, repo: str, revision: str, name: str) -> None:
        file = self.hub.folder / repo / name
        if not (self.hub.folder / repo).is_dir():
            return self._error("RepoNotFound")
        if revision not in (SHA, "main"):
            return self._error("RevisionNotFound")
        if not file.is_file() or file.name in self.hub.gone:
            return self._error("EntryNotFound")
        content = file.read_bytes()
        start, stop, total = 0, len(content), len(content)
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(part[1]), min(int(part[2]) + 1 if part[2] else total, total)
            if start >= total:
                return self._send(416, b"", {"Content-Range": f"bytes */{total}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        self._send(206 if part else 200, content[start:stop], headers, name=f"{repo}/{name}")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", "X-Repo-Commit": SHA})

    def _error(self, code: str) -> None:
        self._send(
            404, b'{"error": "not here"}', {"X-Error-Code": code, "X-Error-Message": "not here", "X-Repo-Commit": SHA}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name and self.hub.cuts and len(content) > 1000:
            self.hub.cuts -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)
        self.wfile.flush()
        if name:
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(content)
        if self.close_connection:
            self.connection.shutdown(socket.SHUT_RDWR)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
