"""A local server that speaks S3 (moto), of which each request can be made to fail."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "images"
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

Fault = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]
"""Takes a WSGI request; returns an answer, or None to have S3 answer."""


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        """Print nothing."""


class S3Server:
    """S3 at `address`, with the bucket `images`. Attributes: client, of boto3; asked, the paths of
    all requests; faults, by key: those of the next requests for the content of an object."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self._app = DomainDispatcherApplication(create_backend_app)
        options: dict[str, Any] = {"threaded": True, "request_handler": _Quiet}
        self._server = make_server("127.0.0.1", 0, self._answer, **options)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = request["PATH_INFO"]
        method = request["REQUEST_METHOD"]
        self.asked.append(f"{method} {path}")
        faults = self.faults.get(path.removeprefix(f"/{BUCKET}/")) if method == "GET" else None
        answer = faults.pop(0)(request, start) if faults else None
        return self._app(request, start) if answer is None else answer

    def put(self, key: str, data: bytes, **options: str) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data, **options)

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            self.client.create_bucket(Bucket=BUCKET)
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def use_s3(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """Have this process, and those that it starts, find a server as the S3 of AWS."""
    S3FileSystem.clear_instance_cache()
    for name, value in _KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def refuse(status: str, code: str, message: str = "") -> Fault:
    """Answer with an error of S3, as ("503 Service Unavailable", "SlowDown")."""

    def fault(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message or code}</Message></Error>".encode()]

    return fault
