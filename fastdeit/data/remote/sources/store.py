"""Files at an object store, the Hub, or any other protocol that fsspec knows."""

import base64
import contextlib
import datetime
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import fsspec

from fastdeit.data.formats.shards.patterns import expand_braces
from fastdeit.data.remote.addresses import OWN, split_pattern
from fastdeit.data.remote.retries import retry
from fastdeit.data.remote.source import Answer, Changed, FetchError, RemoteFile, Transient
from fastdeit.data.remote.sources.sums import MANIFESTS, MAX_BYTES, read_list
from fastdeit.storage.urls import hide_credentials, hide_in_text

_VERSIONS = (
    *("VersionId", "generation", "ETag", "etag", "md5Hash", "blob_id"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)
"""The facts in fsspec's file systems that change with a file, the most reliable first."""
_EXTRA = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or, of a public "
    "bucket, FSSPEC_S3_ANON=true",
    "gs": "gcloud auth application-default login, GOOGLE_APPLICATION_CREDENTIALS, or, of a public "
    "bucket, FSSPEC_GS_TOKEN=anon",
    "hf": "hf auth login, or HF_TOKEN",
}
_REFUSED = {401, 403}
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class StoreSource:
    """The files of a URL of fsspec: a folder, a file, or a pattern with braces and wildcards.

    Options of a file system come from fsspec's own settings, such as FSSPEC_S3_ENDPOINT_URL.
    """

    def __init__(self, url: str) -> None:
        self._url = hide_credentials(url)
        self._protocol = _find_protocol(url)
        self._system, self._path = open_store(url)

    def list_files(self, patterns: Iterable[str]) -> list[RemoteFile]:
        base, pattern = split_pattern(self._path)
        facts = retry(lambda: self._find(base, pattern), self._url)
        if len(facts) == 1 and base in facts:
            base = base.rpartition("/")[0]
        files = [self._make(path, base, each) for path, each in sorted(facts.items())]
        files = [file for file in files if not f"/{file.name}".count(f"/{OWN}/")]
        if not files:
            raise FetchError(f"{self._url}: there is no file")
        return self._add_checksums(files)

    def _find(self, base: str, pattern: str) -> dict[str, dict[str, Any]]:
        """Return the facts of the files, by path. Raises FetchError, Transient."""
        with translate_errors(self._url):
            if pattern:
                return self._match(base, pattern)
            facts = self._system.info(base)
            if facts["type"] == "file":
                return {base: facts}
            found = self._system.find(base, detail=True)
        # S3's consoles mark a folder by an empty object
        return {path: each for path, each in found.items() if not path.endswith("/")}

    def _match(self, base: str, pattern: str) -> dict[str, dict[str, Any]]:
        """Return the facts of the files of a pattern, by path; list each folder once. Raises
        FetchError for a name that does not exist."""
        folders: dict[str, dict[str, dict[str, Any]]] = {}
        found: dict[str, dict[str, Any]] = {}
        for name in expand_braces(pattern):
            path = f"{base}/{name}"
            parent = path.rpartition("/")[0]
            if re.search(r"[*?\[]", parent):
                found |= self._system.glob(path, detail=True)
                continue
            if parent not in folders:
                listed = self._system.ls(parent, detail=True)
                folders[parent] = {each["name"]: each for each in listed}
            names = fnmatch.filter(folders[parent], path)
            if not names:
                raise FetchError(f"{self._url}: there is no {name}")
            found |= {each: folders[parent][each] for each in names}
        return {path: facts for path, facts in found.items() if facts["type"] == "file"}

    def _make(self, path: str, base: str, facts: Mapping[str, Any]) -> RemoteFile:
        name = path.removeprefix(base).lstrip("/")
        size = -1 if facts["size"] is None else int(facts["size"])
        return RemoteFile(
            name,
            self._system.unstrip_protocol(path),
            size,
            _read_version(facts),
            self._read_checksum(facts),
        )

    def _read_checksum(self, facts: Mapping[str, Any]) -> str:
        """Return the hash of the content that a store gives, as `RemoteFile.checksum`."""
        if facts.get("lfs"):
            return f"sha256:{facts['lfs']['sha256']}"
        if facts.get("blob_id"):
            return f"git:{facts['blob_id']}"
        if facts.get("md5Hash"):
            return f"md5:{base64.b64decode(facts['md5Hash']).hex()}"
        found = _MD5.fullmatch(str(facts.get("ETag", ""))) if "s3" in self._protocol else None
        return f"md5:{found[1]}" if found else ""

    def _add_checksums(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """Return the files with the checksums of a list among them. Raises FetchError if a file of
        the list is missing."""
        by_name = {file.name: file for file in files}
        manifest = next((name for name in MANIFESTS if name in by_name), None)
        if manifest is None:
            return files
        data = retry(lambda: self._read(by_name[manifest]), self._url)
        for listed in read_list(manifest, data, by_name[manifest].address):
            if not listed.is_file:
                continue
            if listed.name not in by_name:
                raise FetchError(f"{self._url}: {manifest} names {listed.name!r}, which is missing")
            if listed.checksum:
                file = by_name[listed.name]
                by_name[listed.name] = file.replace(checksum=listed.checksum)
        return list(by_name.values())

    def _read(self, file: RemoteFile) -> bytes:
        if file.size > MAX_BYTES:
            raise FetchError(f"{file.address}: must be a list of at most {MAX_BYTES:,} bytes")
        with self.open(file, 0, file.size) as answer:
            return b"".join(answer.chunks)

    def describe(self, file: RemoteFile) -> RemoteFile:
        path = self._strip(file.address)
        parent = path.rpartition("/")[0]
        with translate_errors(file.address):
            self._system.invalidate_cache(parent)
            now = self._make(path, parent, self._system.info(path))
        # the kind of checksum in a list may differ from that of the store
        is_same_kind = now.checksum.partition(":")[0] == file.checksum.partition(":")[0]
        return now.replace(name=file.name, checksum=(now if is_same_kind else file).checksum)

    @contextlib.contextmanager
    def open(self, file: RemoteFile, start: int, end: int) -> Iterator[Answer]:
        with translate_errors(file.address):
            size = max(1, end - start)
            path = self._strip(file.address)
            with self._system.open(path, "rb", block_size=size, cache_type="none") as opened:
                version = _read_version(getattr(opened, "details", None) or {})
                if version and version != file.version:
                    raise Changed
                opened.seek(start)
                data = opened.read(end - start)
        if len(data) != end - start:
            raise Transient(f"the source ends after {len(data):,} of {end - start:,} bytes")
        yield Answer(start, end, file.size, file.version, iter([data]))

    def _strip(self, address: str) -> str:
        return str(self._system._strip_protocol(address))

    def has_checksum(self, file: RemoteFile) -> bool:
        """Return False for an object that S3 has encrypted with a key: its ETag looks like an MD5,
        but is not that of the content."""
        if not (file.checksum.startswith("md5:") and "s3" in self._protocol):
            return bool(file.checksum)
        bucket, key, _ = self._system.split_path(self._strip(file.address))
        with translate_errors(file.address):
            facts = self._system.call_s3("head_object", Bucket=bucket, Key=key)
        is_keyed = str(facts.get("ServerSideEncryption", "")).startswith("aws:kms")
        return not (is_keyed or facts.get("SSECustomerAlgorithm"))

    def close(self) -> None:
        self._system.invalidate_cache()


def _read_version(facts: Mapping[str, Any]) -> str:
    """Return a text that changes with a file, in one form: some file systems give a time in one
    form in a listing, in another for a single file."""
    fact = next((facts[key] for key in _VERSIONS if facts.get(key)), "")
    if isinstance(fact, datetime.datetime):
        fact = fact.timestamp()
    return str(int(fact)) if isinstance(fact, float) else str(fact)


def open_store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it. Raises FetchError, Transient."""
    shown = hide_credentials(url)
    if "::" in url:
        raise FetchError(f"{shown}: must be one URL, without ::")
    with translate_errors(shown):
        try:
            system, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = _EXTRA.get(_find_protocol(url))
            cure = "pip install 'fastdeit[remote]'" if package else str(error)
            raise FetchError(f"{shown}: needs {cure}") from None
        except ValueError as error:
            raise FetchError(f"{shown}: {error}") from None
    return system, str(path).rstrip("/")


@contextlib.contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Raise FetchError, Transient or Changed in place of a file system's errors; address: the URL
    that is read or written."""
    try:
        yield
    except (FetchError, Transient, Changed):
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        private = ", or it is private" if _find_protocol(address) == "hf" else ""
        raise FetchError(f"{address}: does not exist there{private}") from None
    # each store of fsspec has its own errors
    except Exception as error:
        raise _translate(error, address) from None


def _translate(error: Exception, address: str) -> Exception:
    kind = type(error).__name__
    reason = f"{kind}: {hide_in_text(str(error).strip().partition(chr(10))[0])}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "FileExpired":
        return Changed()
    if isinstance(error, PermissionError) or "Credential" in kind or status in _REFUSED:
        default = "see the documentation of its file system"
        cure = _CREDENTIALS.get(_find_protocol(address), default)
        return FetchError(f"{address}: access is refused ({reason}); credentials: {cure}")
    if "Offline" in kind or isinstance(error, ValueError | TypeError | NotImplementedError):
        return FetchError(f"{address}: {reason}")
    return Transient(reason)


def _find_protocol(url: str) -> str:
    return url.partition(":")[0].lower()
