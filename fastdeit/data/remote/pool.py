"""The threads that fetch: each takes the next block, first of a file that was begun."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fastdeit.data.remote.journal import Journal
from fastdeit.data.remote.source import FetchStopped, RemoteFile, Source
from fastdeit.data.remote.transfer import Block, Transfer

_END_S = 1.0  # to wait for threads that are not waiting for a server


class TransferPool:
    """Threads that fetch files into a folder; the first error ends them all.

    The threads are daemons: one that waits for a silent server ends with the process. Attributes:
    received, the bytes of the files that have arrived, also in earlier fetches.
    """

    def __init__(
        self,
        source: Source,
        files: Sequence[RemoteFile],
        folder: Path,
        journal: Journal,
        workers: int,
    ) -> None:
        self.received = 0
        self._source = source
        self._files = iter(files)
        self._folder = folder
        self._journal = journal
        self._active: list[Transfer] = []
        self._changed = threading.Condition()
        self._count_lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"fastdeit-fetch-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of all threads; return True if they have ended. Raises
        the first error of a thread."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        # first: a thread that ends after this line has its error in the next call
        is_over = not any(thread.is_alive() for thread in self._threads)
        if self._error is not None:
            raise self._error
        return is_over

    def stop(self) -> None:
        """Stop the threads; bytes that arrive after this are not written."""
        self._stop.set()
        deadline = time.monotonic() + _END_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _count(self, size: int) -> None:
        with self._count_lock:
            self.received += size

    def _work(self) -> None:
        try:
            while (task := self._take()) is not None:
                self._run(*task)
        except FetchStopped:
            pass
        # raised in the thread that waits
        except BaseException as error:
            self._error = self._error or error
            self._stop.set()

    def _take(self) -> tuple[Transfer, Block | None] | None:
        """Return the next block with its transfer; the transfer with None if no block of the file
        is missing; None if no file is left."""
        with self._changed:
            while not self._stop.is_set():
                for transfer in self._active:
                    block = transfer.take()
                    if block is not None:
                        return transfer, block
                file = next(self._files, None)
                if file is not None:
                    return self._begin(file)
                if not self._active:
                    return None
                self._changed.wait(0.2)  # a file that the source changes has new blocks
        return None

    def _begin(self, file: RemoteFile) -> tuple[Transfer, Block | None]:
        transfer = Transfer(
            self._source, file, self._folder, self._journal, self._count, self._stop
        )
        self._active.append(transfer)
        return transfer, transfer.take()

    def _run(self, transfer: Transfer, block: Block | None) -> None:
        has_arrived = block is None or transfer.receive(block)
        if has_arrived and transfer.finish():
            with self._changed:
                self._active.remove(transfer)
                self._changed.notify_all()
