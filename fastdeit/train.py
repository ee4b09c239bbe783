"""The entry of `deepspeed fastdeit/train.py --recipe digits`. Nobody imports this file: what it
calls is in run.py."""

import os
import sys

# started as a script, python puts this folder first on the path, where every module would also have
# a top-level name
if os.path.abspath(sys.path[0] or ".") == os.path.dirname(os.path.abspath(__file__)):
    sys.path[0] = os.path.dirname(sys.path[0]) or os.path.dirname(
        os.path.dirname(os.path.abspath(__file__))
    )

import fastdeit.reliability.launcher  # noqa: F401, I001  # before what imports slowly: it notes who the launcher is
from fastdeit.distributed.exits import hard_exit
from fastdeit.commands.train import train_command

if __name__ == "__main__":
    hard_exit(train_command(sys.argv[1:], prog="deepspeed fastdeit/train.py"))
