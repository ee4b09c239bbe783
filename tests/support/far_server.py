"""A local HTTP server with ranges and ETags, of which each request can be made to fail."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

Fault = Callable[["Request"], bool]
"""Takes a request; returns True if it has answered it."""


class Asked(NamedTuple):
    """A request as it came."""

    name: str
    range: str
    query: str
    auth: str


class Request(BaseHTTPRequestHandler):
    """One request; `server.far` is the FarServer."""

    protocol_version = "HTTP/1.1"
    far: "FarServer"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.name = unquote(parts.path).lstrip("/")
        self.asked = Asked(
            self.name,
            self.headers.get("Range", ""),
            parts.query,
            self.headers.get("Authorization", ""),
        )
        far = self.far
        far.asked.append(self.asked)
        fault = far.take_fault(self.asked)
        if fault is None or not fault(self):
            self.answer()

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(
        self,
        sends: int | None = None,
        ranges: bool = True,
        claims: int = 0,
        is_other: bool = False,
    ) -> None:
        """Send a file; sends: only so many bytes of the body, then cut; ranges: obey Range; claims:
        bytes more than there are, in Content-Length; is_other: another file of the same length."""
        path = self.far.folder / self.name
        if self.name in self.far.pages:
            return self.refuse(200, {"Content-Type": "text/html; charset=utf-8"})
        if not path.is_file():
            return self.refuse(404)
        data = bytes(path.stat().st_size) if is_other else path.read_bytes()
        size = len(data)
        first, last = self._range(size) if ranges else (0, size)
        is_part = ranges and self.asked.range != ""
        if is_part and first >= size:
            return self.refuse(416, {"Content-Range": f"bytes */{size}"})
        body = data[first:last]
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{size}")
        if self.far.has_etags:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(body) + claims))
        self.end_headers()
        self.wfile.write(body[:sends])
        if sends is not None or claims:
            self.close_connection = True

    def _range(self, size: int) -> tuple[int, int]:
        if not self.asked.range:
            return 0, size
        first, _, last = self.asked.range.removeprefix("bytes=").partition("-")
        return int(first), min(size, int(last or size) + 1)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """Print nothing when a client has hung up."""


class FarServer:
    """The files of a folder at `address`.

    Attributes: asked, the requests; has_etags; pages, names that are answered by a page for a
    browser.

    `fail(name, fault, times)` has the next requests of a file (not those that only look for its
    size) answered by a fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Asked] = []
        self.has_etags = True
        self.pages: set[str] = set()
        self._faults: dict[str, list[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._lock = Lock()
        handler = type("Handler", (Request,), {"far": self})
        self._server = _QuietServer(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, name: str, fault: Fault, times: int = 1) -> None:
        self._faults.setdefault(name, []).extend([fault] * times)

    def fail_always(self, name: str, fault: Fault) -> None:
        """Have all requests of a file answered by a fault."""
        self._always[name] = fault

    def take_fault(self, asked: Asked) -> Fault | None:
        if asked.name in self._always:
            return self._always[asked.name]
        with self._lock:
            faults = self._faults.get(asked.name)
            is_look = asked.range == "bytes=0-0"
            return faults.pop(0) if faults and not is_look else None

    def count(self, name: str) -> int:
        """Return how often a file's content was asked for."""
        return sum(each.name == name and each.range != "bytes=0-0" for each in self.asked)

    @contextmanager
    def running(self) -> Iterator["FarServer"]:
        thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def status(code: int, **headers: str) -> Fault:
    """Answer with a status; headers: Retry_After="1"."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(request: Request) -> bool:
        request.refuse(code, named)
        return True

    return fault


def cut(sends: int) -> Fault:
    """Send so many bytes of what was asked for, then close the connection."""

    def fault(request: Request) -> bool:
        request.answer(sends=sends)
        return True

    return fault


def stall(seconds: float, sends: int = 10) -> Fault:
    """Send some bytes, then nothing for a while."""

    def fault(request: Request) -> bool:
        request.answer(sends=sends)
        request.wfile.flush()
        time.sleep(seconds)
        return True

    return fault


def no_ranges(request: Request) -> bool:
    """Send the whole file."""
    request.answer(ranges=False)
    return True


def lie(request: Request) -> bool:
    """Promise more bytes than there are."""
    request.answer(claims=7)
    return True


def send_another(request: Request) -> bool:
    """Send another file of the same length, as a mirror with an older version does."""
    request.answer(is_other=True)
    return True


def redirect(to: str) -> Fault:
    return status(302, Location=to)


def replace(data: bytes) -> Fault:
    """Change the file just before it is sent."""

    def fault(request: Request) -> bool:
        (request.far.folder / request.name).write_bytes(data)
        return False

    return fault
