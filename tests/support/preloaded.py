"""What the ranks of a test need, imported once, by the fork server whose children they are."""

import os

from fastdeit.commands.imports import pause_collection


def define_train_graph() -> None:
    """Define the graph of training without building it, which would start threads: loads the
    compiled augmentation, and lets DALI rewrite the graph's functions, half a second of each rank.
    """
    from fastdeit.data.graphs.options import PipelineOptions
    from fastdeit.data.graphs.pipeline import _copies_graph

    options = PipelineOptions((0.0,), (1.0,), knows_sizes=True)
    _copies_graph(lambda i: (), 32, options, **options.dali)


with pause_collection():
    import tests.support.ranks
    import tests.support.tiny_student  # noqa: F401
    from fastdeit.distributed.world import import_deepspeed

    # a GPU's driver must not be in use when a process is forked
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        import_deepspeed()
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (by the first engine)

        import fastdeit.commands.cache.command
        import fastdeit.commands.models.evaluate
        import fastdeit.commands.runs.replay
        import fastdeit.commands.runs.train
        import fastdeit.library.execution
        import fastdeit.library.train_loader  # noqa: F401

        define_train_graph()
