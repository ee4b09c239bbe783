"""The process that runs checks: if it crashes or hangs, its parent (processes.py) continues.

Orders and answers are JSON lines on two separate pipes, as libraries print to the streams.
"""

import dataclasses
import json
import os
import signal
import sys

from fastdeit.doctor.findings import Check, Finding, Target, fail
from fastdeit.doctor.table import find_check
from fastdeit.reliability.launcher import die_with_parent

_LETTERS = 400


def main() -> None:
    """Answer orders until there are no more; the command's arguments are the numbers of the two
    pipes."""
    die_with_parent(signal.SIGKILL)  # a stopped process receives no other signal
    with open(int(sys.argv[1])) as orders, open(int(sys.argv[2]), "w", buffering=1) as answers:
        target = Target(**json.loads(orders.readline()))
        for order in orders:
            finding = run_check(find_check(json.loads(order)), target)
            answers.write(f"{json.dumps(dataclasses.asdict(finding))}\n")
    # libraries may hang or crash at a normal exit
    os._exit(0)


def run_check(check: Check, target: Target) -> Finding:
    """Return the finding of a check; an unexpected error is a finding, too."""
    try:
        return check.run(target)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return fail(reason[:_LETTERS], "see docs/doctor.md, or report it with this line")
