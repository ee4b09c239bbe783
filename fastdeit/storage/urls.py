"""URLs: their detection, their form without credentials, their place in the user's cache."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

_WEB = ("http", "https")
_IN_TEXT = re.compile(r"https?://[^\s'\"<>]+")
_SECRET = re.compile(r"sig(nature)?$|token|secret|passw|credential|key([-_]|$)|auth", re.IGNORECASE)
"""The names of secret fields in a query: those of S3, Google, CloudFront, Azure, and of tokens."""
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Return True for a text that begins with a protocol, as s3://bucket/folder."""
    return _URL.match(path) is not None


def is_web(url: str) -> bool:
    """Return True for a URL of a web server."""
    return url.partition("://")[0].lower() in _WEB


def hide_credentials(url: str) -> str:
    """Return a URL without user and password, and, for a web server, without the query, in which
    signed URLs have their signature."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.partition("/")
    if is_web(url):
        host, path = (re.split(r"[?#]", text)[0] for text in (host, path))
    # the @ of hf://datasets/OWNER/NAME@REVISION is after the first slash
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def has_secret(path: str) -> bool:
    """Return True for a URL with a user or a password, or with a signature, a token or a key in its
    query."""
    if not is_url(path):
        return False
    host = re.split(r"[/?#]", path.partition("://")[2])[0]
    fields = re.split(r"[&;#]", path.partition("?")[2])
    return "@" in host or any(_SECRET.search(field.partition("=")[0]) for field in fields)


def hide_in_text(text: str) -> str:
    """Return a text, such as the message of a library, without the credentials in its web
    addresses."""
    return _IN_TEXT.sub(lambda found: hide_credentials(found[0]), text)


def find_user_cache() -> Path:
    """Return the cache folder of this user; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def find_cached(url: str, kind: str, shown: str = "") -> Path:
    """Return the folder of a URL in the user's cache; it need not exist.

    kind: "data" or "runs"; $FASTDEIT_DATA or $FASTDEIT_RUNS replaces fastdeit/KIND in the cache
    folder. shown: the text for the readable words of the name, by default the URL.
    """
    home = os.environ.get(f"FASTDEIT_{kind.upper()}") or find_user_cache() / "fastdeit" / kind
    return Path(home).expanduser() / name_cached(url, shown or url)


def name_cached(url: str, shown: str) -> str:
    """Return the name of a URL's folder in a cache: readable words from `shown`, and a hash."""
    url = url.rstrip("/")
    words = re.sub(r"[^a-zA-Z0-9.]+", "-", unquote(shown.rstrip("/")).rpartition("/")[2])
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    return f"{words.strip('-.')[:40] or 'data'}-{key}"
