"""`fastdeit fetch URL DIR`: fetch a data set, or any files, to a local folder.

fastdeit fetch URL DIR [--num-workers 8] [--dry-run]

URL is a folder, a file, or a pattern such as s3://bucket/set/train-{0000..0127}.tar, at s3://,
gs://, hf://datasets/OWNER/NAME, https:// or another protocol of fsspec. A folder at https:// must
have a list: pack.json or SHA256SUMS. Files are verified and get their names when they are whole.
The same command continues an interrupted fetch, and later fetches the files that have changed.

Exit codes: 0; 1: the source failed or did not answer, and the same command continues; 2: a URL, a
folder, credentials or a disk that cannot be used; 130: interrupted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.filesize import decimal

from fastdeit.commands.errors import one_line_errors, print_error
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section
from fastdeit.data.remote.fetch import WORKERS, compare, fetch, open_source
from fastdeit.data.remote.journal import Journal
from fastdeit.data.remote.source import Unreachable
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable
from fastdeit.storage.urls import hide_credentials

_INTERRUPTED = 130


@dataclass(frozen=True)
class FetchFlags(Section):
    """The transfer of the files."""

    num_workers: int = WORKERS
    """Files, or blocks of large files, that are fetched at the same time."""
    dry_run: bool = False
    """List the files that would be fetched, and write nothing."""

    def check(self) -> None:
        self._require("num_workers", 1 <= self.num_workers <= 256, "1 to 256")


@dataclass(frozen=True)
class FetchOptions:
    """The flags of `fastdeit fetch`."""

    url: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="URL")]
    """A folder, a file or a pattern, at s3://, gs://, hf://, https:// or another of fsspec."""
    dir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder to fetch into."""
    transfer: FetchFlags = field(default_factory=FetchFlags)


def fetch_command(argv: Sequence[str]) -> int:
    """Run `fastdeit fetch`; return its exit code.

    Exit with code 2 for a command line, a URL, a folder or a disk that cannot be used.
    """
    terminal = Terminal()
    with one_line_errors():
        options = parse_options(argv, FetchOptions, "fastdeit fetch", __doc__ or "")
        folder = Path(os.path.abspath(options.dir))
        try:
            if options.transfer.dry_run:
                _show(terminal, options.url, folder)
            else:
                fetch(options.url, folder, workers=options.transfer.num_workers, terminal=terminal)
        except Unreachable as error:
            print_error(error)
            return 1
        except KeyboardInterrupt:
            url = hide_credentials(options.url)
            Terminal(stderr=True).say(f"interrupted; the same command continues with {url}")
            return _INTERRUPTED
    return 0


def _show(terminal: Terminal, url: str, folder: Path) -> None:
    """Print the files that a fetch would bring, and the room for them."""
    with open_source(url) as source:
        listing = compare(source, url, Journal(folder, terminal.say))
    for file in listing.missing:
        terminal.say(f"{decimal(file.size):>10}  {printable(file.name)}")
    terminal.say(listing.describe())
