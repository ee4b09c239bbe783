"""A local HTTP server of files, and a local Hugging Face Hub: its cache, and its server."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FileServer:
    """The files of a folder at `address`, and what was asked for.

    cut: bytes of a file after which the connection breaks; None: whole files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cut: int | None = None
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["FileServer"]:
        thread = Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def _handler_of(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            server.asked.append(f"{self.command} {name}")
            # the Hub has OWNER/NAME/resolve/REVISION/FILE
            path = server.folder / name.replace("/resolve/main/", "/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(data[: server.cut])

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    return Handler


def fill_hub_cache(cache: Path, repository: str, files: Path, commit: str = COMMIT) -> Path:
    """Place the files of a folder into a cache of huggingface_hub as revision `main` of a
    repository; return the folder of the revision."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    snapshot = place / "snapshots" / commit
    shutil.copytree(files, snapshot)
    return snapshot


def use_caches(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """Give this process, and those that it starts, empty caches below `root` and no network for the
    Hub; return the Hub's cache."""
    hub = root / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(root / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return hub


def use_hub(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    """Let this process ask a server for the files of the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
