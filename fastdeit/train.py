"""The entry of `deepspeed fastdeit/train.py --recipe digits`. Nothing imports this file: its work
is done in `commands/runs/train.py`."""

import os
import sys

# python puts the folder of a script first on the path, where every room would also be a top-level
# package
HERE = os.path.dirname(os.path.abspath(__file__))
if os.path.abspath(sys.path[0] or ".") == HERE:
    sys.path[0] = os.path.dirname(HERE)

from fastdeit.commands.imports import pause_collection
from fastdeit.reliability import launcher

if __name__ == "__main__":
    attached = launcher.attach()
    # slow imports come after `attach`, which cannot see a launcher that has died before it
    with pause_collection():
        from fastdeit.commands.runs.train import train_command
        from fastdeit.display.terminal import end_on_closed_pipe, replace_closed_streams, show_log

    replace_closed_streams()
    show_log()
    with end_on_closed_pipe():
        code = train_command(sys.argv[1:], "deepspeed fastdeit/train.py", attached)
        from fastdeit.distributed.exits import hard_exit  # imports torch, --help does not

        hard_exit(code)
