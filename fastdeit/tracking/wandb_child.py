"""The process that imports wandb for a run: `python -m fastdeit.tracking.wandb_child`.

It reads events from standard input, one JSON object a line, as `WandbTracker` writes them. The end
of the input without a `finish` marks the run as failed. When the run's process is gone, this one
has a few seconds to send what is left.
"""

import base64
import io
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

_ORPHAN_S = 10.0


def main() -> None:
    """Send the events of one run to wandb."""
    threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints is no answer
    run: Any = None
    exit_code = 1
    for line in sys.stdin:
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "start":
            run = _start(event)
            answers.write("started\n")
            answers.flush()
        elif kind == "finish":
            exit_code = event["exit_code"]
        else:
            _log(run, kind, event)
    if run is not None:
        run.finish(exit_code=exit_code)


def _end_after_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(_ORPHAN_S)
    os._exit(1)


def _start(settings: Mapping[str, Any]) -> Any:
    """Return wandb's run: a new one, or that of the same id, continued."""
    import wandb

    names = ("id", "dir", "name", "project", "tags", "config")
    return wandb.init(
        **{name: settings[name] for name in names},
        resume="allow",
        settings=wandb.Settings(console="off", silent=True, x_stats_pid=settings["pid"]),
    )


def _log(run: Any, kind: str, event: Mapping[str, Any]) -> None:
    if kind == "images":
        run.log({event["name"]: list(map(_read_picture, event["pictures"]))}, step=event["step"])
    else:
        run.log(event["values"], step=event["step"])


def _read_picture(picture: Mapping[str, str]) -> Any:
    import wandb
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    return wandb.Image(image, caption=picture["caption"])


if __name__ == "__main__":
    main()
