"""A local Hugging Face Hub with one data set: its API of trees, and its files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import HfFileSystem, constants

_FACTS = {"sha": "a" * 40, "private": False, "tags": [], "likes": 0}
_LFS_FROM = 1000  # bytes


class HubServer:
    """Attributes: files, their contents by name; asked; status, of every answer but 200."""

    def __init__(self, files: dict[str, bytes], repository: str = "owner/set") -> None:
        self.files = files
        self.repository = repository
        self.asked: list[str] = []
        self.status = 200
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def describe(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
        if len(data) < _LFS_FROM:
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return entry | {"oid": blob}
        digest = hashlib.sha256(data).hexdigest()
        lfs = {"oid": digest, "size": len(data), "pointerSize": 133}
        return entry | {"oid": digest[:40], "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(path)
        if self.hub.status != 200:
            self._send(self.hub.status, b"{}")
        elif "/tree/" in path:
            self._send(200, json.dumps(list(map(self.hub.describe, self.hub.files))).encode())
        elif "/resolve/" in path:
            self._send_file(self.hub.files[path.split("/resolve/")[1].partition("/")[2]])
        elif path.startswith(f"/api/datasets/{self.hub.repository}"):
            facts = {"id": self.hub.repository, **_FACTS}
            self._send(200, json.dumps(facts).encode())
        else:
            self._send(404, b"{}")

    def _send_file(self, data: bytes) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        self._send(206, data[int(first) : int(last) + 1])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def use_hub_server(monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    """Let this process ask a server for the files of the Hub."""
    HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
