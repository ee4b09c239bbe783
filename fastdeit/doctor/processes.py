"""Checks in a child process: if it crashes or hangs in one, the next checks get a new process."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fastdeit.doctor.findings import Check, Finding, Target, absent, fail

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from fastdeit.doctor.worker import main; main()"
)
"""The child's program, which imports from the paths of this process, as these are checked."""
_END_S = 5.0  # a process that waits for a dead file system cannot be killed
_TAIL = 2000


def run_checks(
    checks: Sequence[Check],
    target: Target,
    *,
    broken: Collection[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[Check, Finding]]:
    """Run checks one after the other in a child process; yield each with its finding.

    A check is skipped if one that it needs is broken. broken: names of earlier checks that are
    broken. variables: for the child's environment, beside those of this process.
    """
    failed = {name.removeprefix("import ") for name in broken}
    waiting = list(checks)
    worker: Worker | None = None
    try:
        while waiting:
            check = waiting[0]
            missing = [name for name in check.needs if name in failed]
            if missing:
                yield check, absent(f"needs {missing[0]}, which is broken")
            else:
                worker = worker or Worker(target, variables or {})
                finding = worker.run(check)
                worker = worker if worker.is_alive else None
                if finding.status == "broken":
                    failed.add(check.name.removeprefix("import "))
                yield check, finding
            del waiting[0]
    finally:
        if worker:
            worker.end()


class Worker:
    """A child process that runs one check after the other (worker.py). Attributes: is_alive."""

    def __init__(self, target: Target, variables: Mapping[str, str]) -> None:
        order, self._orders = os.pipe()
        self._answers, answer = os.pipe()
        self._output = os.memfd_create("output")
        self._text = b""
        command = [sys.executable, "-X", "faulthandler", "-c", _CODE, str(order), str(answer)]
        self._process = subprocess.Popen(
            [*command, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env={**os.environ, **variables},
            pass_fds=(order, answer),
            start_new_session=True,
        )
        os.close(order)
        os.close(answer)
        self.is_alive = True
        self._send(dataclasses.asdict(target))

    def run(self, check: Check) -> Finding:
        """Return the finding of a check, or one that names how the process ended, or that it
        hangs."""
        began = time.monotonic()
        self._send(check.name)
        line = self._read(began + check.limit_s)
        if line:
            return Finding(**json.loads(line))
        if line is None:
            self.end()
            seconds = f"no answer in {time.monotonic() - began:.0f} s"
            return fail(seconds, "look at what it names: it waits there without end")
        return fail(f"the process died: {self._name_exit()}", "repair or reinstall what it names")

    def _send(self, order: Any) -> None:
        # a dead child is noticed when its answer is read
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, f"{json.dumps(order)}\n".encode())

    def _read(self, deadline: float) -> bytes | None:
        """Return the next line; empty when the process has ended, None after the deadline."""
        while b"\n" not in self._text:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([self._answers], [], [], wait)[0]:
                return None
            part = os.read(self._answers, 2**16)
            if not part:
                return b""
            self._text += part
        line, _, self._text = self._text.partition(b"\n")
        return line

    def end(self) -> int | None:
        """End the process and those that it has started; return its exit code, or None if it does
        not end."""
        if self.is_alive:
            self.is_alive = False
            for descriptor in (self._orders, self._answers, self._output):
                os.close(descriptor)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_END_S)
        return None

    def _name_exit(self) -> str:
        """Return how the process has ended, and the last line that it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        size = os.fstat(self._output).st_size
        tail = os.pread(self._output, _TAIL, max(0, size - _TAIL)).decode(errors="replace")
        code = self.end() or 0
        name = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        lines = [line for line in tail.splitlines() if line.strip() and not _is_stack(line)]
        return f"{name}; {lines[-1].strip()}" if lines else name


def _is_stack(line: str) -> bool:
    """Return True for a line of faulthandler's stack."""
    return line.lstrip().startswith(("File ", "Current thread", "Thread ", "Extension modules"))
