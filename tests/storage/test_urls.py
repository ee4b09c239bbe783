"""URLs: what is one, and its form without credentials."""

import pytest

from fastdeit.storage.urls import has_secret, hide_credentials, hide_in_text, is_url, is_web


@pytest.mark.parametrize("text", ["s3://b/k", "HTTPS://host", "hf://datasets/o/n", "az://c/x"])
def test_a_protocol_makes_a_url(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize(
    "text", ["", "data", "/data", "./s3://x", "C:\\data", "a::b", "s3:/b", "://x"]
)
def test_a_path_is_no_url(text: str) -> None:
    assert not is_url(text)


def test_http_is_the_web() -> None:
    assert is_web("http://h") and is_web("HTTPS://h") and not is_web("s3://h")


HIDDEN = {
    "https://me:pw@host:8/a@b/c?sig=1#x": "https://host:8/a@b/c",
    "https://me:p@w@host/c": "https://host/c",
    "https://host?sig=1": "https://host",
    "https://host/train-{0..3}.tar?sig=1": "https://host/train-{0..3}.tar",
    "sftp://me:pw@host/a?b": "sftp://host/a?b",
    "s3://bucket/shard-??.tar": "s3://bucket/shard-??.tar",
    "hf://datasets/o/n@main/x": "hf://datasets/o/n@main/x",
    "plain/path?x@y": "plain/path?x@y",
}


@pytest.mark.parametrize("url", HIDDEN)
def test_credentials_are_hidden(url: str) -> None:
    assert hide_credentials(url) == HIDDEN[url]
    assert hide_credentials(HIDDEN[url]) == HIDDEN[url]


def test_credentials_are_hidden_in_a_message() -> None:
    text = "403 for url 'https://cdn.host/a?X-Amz-Signature=1&b=2' (http://u:p@h/x)"
    assert hide_in_text(text) == "403 for url 'https://cdn.host/a' (http://h/x)"


SECRET = [
    "https://me:pw@host/x.pth",
    "https://me@host",
    "s3://key:secret@bucket/x",
    "https://host/x.pth?X-Amz-Algorithm=a&X-Amz-Signature=1",
    "https://host/x.pth?Expires=1&Signature=2&Key-Pair-Id=3",
    "https://host/x.pth?sv=2022&sig=abc",
    "https://host/x.pth?access_token=1",
    "https://host/x.pth?download=1&apiKey=2",
]
OPEN = ["https://host/x.pth?download=true", "hf-hub:owner/name@main", "a?token=b@c", "s3://b/x@y"]


@pytest.mark.parametrize("url", [*SECRET, *OPEN])
def test_what_grants_access_is_a_secret(url: str) -> None:
    assert has_secret(url) == (url in SECRET)
