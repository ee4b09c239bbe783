"""deit's `main.py` on the CPU, with a student of any size: run by the Python of deit's environment.

PYTHON run_deit.py CHECKOUT [--patch-size P --embed-dim D --depth L --num-heads H] FLAGS_OF_MAIN

Each difference to `python main.py FLAGS_OF_MAIN` is a function in `SHIMS`; deit's own files are not
changed, and none of them is here. This file imports nothing of fastdeit.
"""

import argparse
import collections.abc
import importlib
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch

SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
STUDENTS = ("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224")


def load(name: str) -> Any:
    """Import a module of deit's environment, whose types are not known here."""
    return importlib.import_module(name)


def restore_torch_six() -> None:
    """Give torch the module `torch._six` again, which timm 0.3.2 imports and torch 2 lacks."""
    six = types.ModuleType("torch._six")
    names = {"container_abcs": collections.abc, "string_classes": (str, bytes), "int_classes": int}
    vars(six).update(names, inf=float("inf"))
    sys.modules["torch._six"] = six


def skip_synchronize() -> None:
    """Make `torch.cuda.synchronize`, which deit calls in every step, do nothing without a GPU."""
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda device=None: None


def mix_on_cpu() -> None:
    """Make timm 0.3.2 build the targets of Mixup on the CPU: it has no flag for their device."""
    mixup = load("timm.data.mixup")
    mixup.mixup_target = partial(mixup.mixup_target, device="cpu")


def count_classes() -> None:
    """Give the head of `--data-set IMNET` the number of classes of the folder, instead of 1000."""
    datasets = load("datasets")
    build = datasets.build_dataset

    def build_dataset(is_train: bool, args: argparse.Namespace) -> tuple[Any, int]:
        dataset, _ = build(is_train, args)
        return dataset, len(dataset.classes)

    datasets.build_dataset = build_dataset


def repeat_in_one_process() -> None:
    """Make one process use deit's distributed branch, which alone has repeated augmentation.

    No process group is made: deit's helpers then return rank 0 of 1. DataParallel without a GPU
    calls the model as it is.
    """

    def take_branch(args: argparse.Namespace) -> None:
        args.distributed = True
        args.gpu = None

    def wrap(model: torch.nn.Module, device_ids: object) -> torch.nn.Module:
        return torch.nn.DataParallel(model)

    load("utils").init_distributed_mode = take_branch
    load("torch.nn.parallel").DistributedDataParallel = wrap


SHIMS = (restore_torch_six, skip_synchronize, mix_on_cpu, count_classes, repeat_in_one_process)


def prepare(checkout: str) -> None:
    """Make deit's modules importable by their names, with every shim."""
    sys.path.insert(0, checkout)
    for shim in SHIMS:
        shim()


def resize_students(sizes: dict[str, int]) -> None:
    """Register deit's own classes with these sizes under the names of deit's tiny students."""
    models = load("models")
    entrypoints = load("timm.models.registry")._model_entrypoints
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    fixed = {"mlp_ratio": 4, "qkv_bias": True, "norm_layer": norm, **sizes}
    for name, kind in zip(
        STUDENTS, ("DistilledVisionTransformer", "VisionTransformer"), strict=True
    ):
        entrypoints[name] = partial(_create, getattr(models, kind), fixed)


def _create(kind: Any, fixed: dict[str, Any], pretrained: bool = False, **given: Any) -> Any:
    return kind(**fixed, **given)


def split_sizes(argv: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return the sizes that the command line names, and the remaining flags, for main.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in SIZES:
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    found, left = parser.parse_known_args(argv)
    return {name: size for name, size in vars(found).items() if size is not None}, left


def main(argv: list[str]) -> None:
    checkout, *flags = argv
    prepare(checkout)
    sizes, flags = split_sizes(flags)
    deit = load("main")
    resize_students({"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3, **sizes})
    args = argparse.ArgumentParser(parents=[deit.get_args_parser()]).parse_args(flags)
    if args.output_dir:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    deit.main(args)


if __name__ == "__main__":
    main(sys.argv[1:])
