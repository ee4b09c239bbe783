"""What the ranks of a test need, imported once, by the fork server whose children they are."""

import os

from fastdeit.commands.imports import pause_collection

with pause_collection():
    import tests.support.tiny_student  # noqa: F401
    from fastdeit.distributed.world import import_deepspeed

    # a GPU's driver must not be in use when a process is forked
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        import_deepspeed()
