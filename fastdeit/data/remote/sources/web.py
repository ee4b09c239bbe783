"""Files at a web server: one, those of a brace pattern, or those that a list names.

Plain HTTP has no listing of a folder. fsspec's own file system for it accepts a whole file in place
of a range and does not read Retry-After, so this module makes the requests, through httpx2.
"""

import contextlib
import email.utils
import logging
import netrc
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpx2

from fastdeit.data.formats.shards.patterns import expand_braces
from fastdeit.data.remote.addresses import split_pattern
from fastdeit.data.remote.retries import retry
from fastdeit.data.remote.source import (
    Answer,
    Changed,
    FetchError,
    RemoteFile,
    Transient,
    Unreachable,
)
from fastdeit.data.remote.sources.sums import MANIFESTS, MAX_BYTES, Listed, is_list, read_list
from fastdeit.storage.urls import hide_credentials

CONNECT_S = 30.0
"""The longest time until a connection is made."""
READ_S = 60.0
"""The longest time without a byte."""
_LONGEST_WAIT_S = 300.0  # that a server may ask for
_PROBES = 16  # requests for sizes at once
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
_REFUSED = {401, 403, 407}
_ABSENT = {404, 410}
_ADVICE = (
    "give a file, a brace pattern (train-{0000..0127}.tar), or a list: a folder with the pack.json "
    "of fastdeit pack or with SHA256SUMS, or the URL of a list"
)


class WebSource:
    """The files of an http or https URL.

    User and password come from the URL, else from ~/.netrc; a query is sent with every request.
    """

    def __init__(self, url: str) -> None:
        self._url = hide_credentials(url)
        parts = _split_url(url, self._url)
        self._query = parts.query
        logging.getLogger("httpx2").addFilter(_hide_in_log)
        self._client = httpx2.Client(
            auth=_find_auth(parts.username, parts.password),
            headers={"User-Agent": "fastdeit", "Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=httpx2.Timeout(READ_S, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None),
        )

    def list_files(self, patterns: Iterable[str]) -> list[RemoteFile]:
        scheme, _, rest = self._url.partition("://")
        host, slash, path = rest.partition("/")  # a host may have the brackets of IPv6
        folder, pattern = split_pattern(slash + path)
        base = f"{scheme}://{host}{folder}"
        if re.search(r"[*?\[]", pattern):
            raise FetchError(f"{self._url}: HTTP cannot list what matches a wildcard; use braces")
        if pattern:
            return self._probe_all(_at(base, expand_braces(pattern)))
        if is_list(base):
            return self._follow_list(base)
        folder, _, name = base.rpartition("/")
        if name and folder.count("/") > 1 and self._is_file(base):
            return self._probe_all(_at(folder, [name]))
        named = [name for each in patterns if "{" in each for name in expand_braces(each)]
        return self._list_folder(base.rstrip("/"), named)

    def _list_folder(self, base: str, named: list[str]) -> list[RemoteFile]:
        """Return the files of the list in a folder, or those of `named` if there is no list. Raises
        FetchError."""
        for manifest in MANIFESTS:
            if self._find(*_at(base, [manifest])[0]) is not None:
                return self._follow_list(f"{base}/{manifest}")
        if not named:
            fact = "does not exist there, or is a folder, which HTTP cannot list"
            raise FetchError(f"{self._url}: {fact}; {_ADVICE}")
        return self._probe_all(_at(base, named))

    def _is_file(self, address: str) -> bool:
        """Return False for an address that does not exist or is a page, as a server's listing of a
        folder is."""

        def look() -> bool:
            with self._get(address, {"Range": "bytes=0-0"}) as response:
                return not str(response.headers.get("Content-Type", "")).startswith("text/html")

        try:
            return retry(look, address)
        except _Absent:
            return False

    def _follow_list(self, address: str) -> list[RemoteFile]:
        base, _, own = address.rpartition("/")
        listed = read_list(own, retry(lambda: self._read(address), address), address)
        if not all(one.is_file for one in listed):
            raise FetchError(
                f"{address}: is packed as a folder, which HTTP cannot list; pack shards"
            )
        files = [(one, f"{base}/{quote(one.name)}") for one in listed]
        if own in MANIFESTS:
            files += _at(base, [own])
        return self._probe_all(files)

    def _read(self, address: str) -> bytes:
        data = bytearray()
        with self._get(address, {}) as response:
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise FetchError(f"{address}: must be a list of at most {MAX_BYTES:,} bytes")
        return bytes(data)

    def _probe_all(self, listed: Sequence[tuple[Listed, str]]) -> list[RemoteFile]:
        """Return files with their sizes; ask the server for those that a list does not have. Raises
        FetchError for a file that does not exist."""
        with ThreadPoolExecutor(_PROBES) as pool:
            found = list(pool.map(lambda one: self._find(*one), listed))
        missing = [
            address for (_, address), file in zip(listed, found, strict=True) if file is None
        ]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FetchError(f"{missing[0]}{more}: does not exist there (404)")
        return [file for file in found if file is not None]

    def _find(self, listed: Listed, address: str) -> RemoteFile | None:
        """Return a file; None if it does not exist."""
        file = RemoteFile(listed.name, address, listed.size, "", listed.checksum)
        if listed.size >= 0:
            return file
        try:
            return retry(lambda: self.describe(file), address)
        except _Absent:
            return None

    def describe(self, file: RemoteFile) -> RemoteFile:
        # GET of one byte, as some servers refuse HEAD, and signed URLs are for GET alone
        with self._get(file.address, {"Range": "bytes=0-0"}) as response:
            size = _read_size(response)
            if size is None:
                raise FetchError(f"{file.address}: the server does not say how many bytes it has")
            version = "" if file.checksum else _read_version(response)
            return file.replace(size=size, version=version)

    @contextlib.contextmanager
    def open(self, file: RemoteFile, start: int, end: int) -> Iterator[Answer]:
        is_whole = (start, end) == (0, file.size)
        headers = {} if is_whole else {"Range": f"bytes={start}-{end - 1}"}
        with self._get(file.address, headers) as response:
            if response.status_code == 416:
                raise Changed
            size = _read_size(response)
            first, behind = _read_range(response) or (0, file.size if size is None else size)
            version = file.version and _read_version(response)
            yield Answer(first, behind, size, version, response.iter_raw())

    @contextlib.contextmanager
    def _get(self, address: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """Begin a request. Raises FetchError, Transient, also for errors in the block."""
        url = f"{address}?{self._query}" if self._query else address
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                _check_status(response, address)
                yield response
        except (httpx2.TooManyRedirects, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise FetchError(f"{address}: {type(error).__name__}") from None
        except httpx2.TransportError as error:
            if "Name or service not known" in str(error):
                raise Unreachable(f"{address}: there is no such host") from None
            reason = str(error).partition("\n")[0] or "no answer"
            raise Transient(f"{type(error).__name__}: {reason}") from None

    def has_checksum(self, file: RemoteFile) -> bool:
        return bool(file.checksum)

    def close(self) -> None:
        self._client.close()


def _split_url(url: str, shown: str) -> SplitResult:
    """Return a URL, split. Raises FetchError for one without a host, or with a wrong one."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is parsed here
    except ValueError as error:
        raise FetchError(f"{shown}: is no URL ({error})") from None
    if not parts.hostname:
        raise FetchError(f"{shown}: has no host")
    return parts


class _Absent(FetchError):
    """The error of a file that the server does not have."""


def _at(base: str, names: Iterable[str]) -> list[tuple[Listed, str]]:
    """Return files in a folder, with their addresses; names: as URLs have them, with %20 and the
    like."""
    return [(Listed(unquote(name)), f"{base}/{name}") for name in names]


def _hide_in_log(record: logging.LogRecord) -> bool:
    """Hide the queries of URLs in httpx2's log of requests, for programs that show it."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            hide_credentials(str(one)) if isinstance(one, httpx2.URL) else one
            for one in record.args
        )
    return True


def _find_auth(user: str | None, password: str | None) -> httpx2.Auth | None:
    if user:
        return httpx2.BasicAuth(unquote(user), unquote(password or ""))
    try:
        return httpx2.NetRCAuth()
    except (OSError, netrc.NetrcParseError):
        return None


def _check_status(response: httpx2.Response, address: str) -> None:
    """Raise FetchError for a permanent error of the server, Transient for a temporary one."""
    status = response.status_code
    if status in (200, 206, 416):
        return
    if status in _MAY_PASS:
        raise Transient(f"the server answers {status}", _read_wait(response))
    if status in _ABSENT:
        raise _Absent(f"{address}: does not exist there (the server answers {status})")
    if status in _REFUSED:
        cure = "credentials are user:password@ in the URL, ~/.netrc, or a signed URL"
        raise FetchError(f"{address}: access is refused (the server answers {status}); {cure}")
    raise FetchError(f"{address}: the server answers {status}")


def _read_wait(response: httpx2.Response) -> float | None:
    """Return the seconds of Retry-After, which is a number or a date; None without it."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text), _LONGEST_WAIT_S)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - time.time()), _LONGEST_WAIT_S)


def _read_size(response: httpx2.Response) -> int | None:
    """Return the size of the whole file in bytes, or None if an answer does not give it."""
    if response.status_code in (206, 416):
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if re.fullmatch(r"[0-9]{1,18}", total) else None


def _read_range(response: httpx2.Response) -> tuple[int, int] | None:
    """Return the offsets of the first byte of a range and of the first byte after it; None for a
    whole file."""
    found = re.match(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/", response.headers.get("Content-Range", "")
    )
    return (int(found[1]), int(found[2]) + 1) if response.status_code == 206 and found else None


def _read_version(response: httpx2.Response) -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified", ""))
