"""`fastdeit replay RUN --step N`: repeat one step of a run, and show its samples and losses.

fastdeit replay RUN --step N [--output DIR] [--data-path DATA] [--teacher-path FILE]
On as many processes as the run had:
deepspeed --no_local_rank --module fastdeit replay RUN --step N

RUN is the --output-dir of the run, whose settings are read from it; relative paths in them start at
the folder where the run was started. Name --data-path or --teacher-path if the data set or the
teacher has another place now.

Step N follows N finished steps, so the first is step 0. It begins with checkpoint `step-N`; failure
files, bad-steps.jsonl and spikes.jsonl also call it N; in metrics.jsonl, which counts finished
steps, it belongs to the first line above N. The images as PNG, plan.json and step.json are written
to DIR (default: RUN/replay-N).

The newest state from before the step is loaded, and trained up to the step in memory; nothing else
in the folder is changed. With fewer processes than the run had, each does the work of several, one
after the other, which changes only the order in which gradients are summed. Exit code 1: the
samples, the teacher or the initial weights are not those that the run recorded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.changes import find_paths, read_settings
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import require, require_value
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index, fetch_data
from fastdeit.data.snapshot import reconcile
from fastdeit.display.terminal import Terminal
from fastdeit.distributed.collectives import each_rank, first_on_rank0, on_rank0
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.replay.files import (
    PLAN,
    STEP,
    check_output,
    prepare_output,
    save_images,
    show_report,
    write_json,
)
from fastdeit.replay.history import StepHistory, check_folder, read_history
from fastdeit.replay.report import build_report
from fastdeit.replay.restore import restore_state
from fastdeit.replay.results import MicroBatchResult, ProcessResult, SampleResult
from fastdeit.replay.samples import Samples
from fastdeit.replay.step import StepResult, describe_samples, rerun
from fastdeit.run.build import build_training
from fastdeit.run.identity import check_same_everywhere, check_same_settings
from fastdeit.run.preflight import check_config, fetch_weight_files
from fastdeit.storage.attempts import attempt_at, read_attempts
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.urls import is_url
from fastdeit.training.build import build_deepspeed_config


def replay_command(argv: Sequence[str]) -> int:
    """Run `fastdeit replay`; return its exit code.

    1: samples, teacher or initial weights are not those that the run recorded. 2: the step cannot
    be repeated.
    """
    if {"-h", "--help"} & set(argv):
        Terminal().say(__doc__ or "")
        return 0
    with one_line_errors():
        parsed, flags = make_replay_parser().parse_known_args(list(argv))
        folder = RunFolder(Path(parsed.run))
        check_folder(folder)
        own = ["--config", str(folder.config), *flags, "--output-dir", str(folder)]
        attempt = attempt_at(read_attempts(folder), parsed.step)
        settings = attempt.settings if attempt else {}
        config, _ = parse_config(own, "fastdeit replay", settings=settings)
        check_same_settings(config, folder)
        config = find_paths(read_settings(folder.config, "RUN"), config)
        world = init_distributed()
        check_same_everywhere(config)
        history = on_rank0(lambda: read_history(config, folder, parsed.step))
        config = _restore_form(config, history, world)
        output = parsed.output or folder.replay(parsed.step)
        with use_backend(config.run.kernels):
            return _replay(config, world, history, output)


def make_replay_parser() -> argparse.ArgumentParser:
    """Return the parser of replay's flags, without those of train."""
    parser = argparse.ArgumentParser(prog="fastdeit replay", add_help=False, allow_abbrev=False)
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--step", type=int, required=True, help="finished steps before it")
    parser.add_argument("--output", type=Path, help="a folder to write")
    parser.add_argument("--local_rank", "--local-rank", type=int)  # the launcher passes it
    return parser


def _restore_form(config: Config, history: StepHistory, world: World) -> Config:
    """Return the settings with the form of the attempt in which the step was trained. Raises
    ValueError if these processes cannot share its work equally."""
    attempt = history.attempt
    sizes = [size for size in range(1, attempt.world_size + 1) if attempt.world_size % size == 0]
    allowed = f"{', '.join(map(str, sizes))}, as the run had {attempt.world_size} processes"
    require_value(world.size in sizes, "--num_gpus", world.size, allowed)
    # the same pixels without a GPU
    place = config.augment.augment_device if world.device.type == "cuda" else "auto"
    config = config.replace(
        optim={"micro_batch": attempt.micro_batch},
        run={
            "zero_stage": attempt.zero_stage,
            "offload_optimizer": attempt.offload_optimizer,
            "precision": attempt.precision,
        },
        augment={"augment_backend": attempt.augment_backend, "augment_device": place},
        data={"decoder": attempt.decoder},
    )
    each_rank(lambda: check_config(config, world.size))
    each_rank(lambda: build_deepspeed_config(config, world))
    fetch_weight_files(config)
    if is_url(config.data.data_path):  # the few images of a folder are read from it, not copied
        fetch_data(config)
    return config


def _replay(config: Config, world: World, history: StepHistory, output: Path) -> int:
    on_rank0(lambda: check_output(output))
    current = first_on_rank0(lambda: build_train_index(config))
    index, unreadable = reconcile(current, history.folder.train_images)
    training = build_training(config, world, index)
    samples = Samples(config, world, history, index, unreadable, training)
    try:
        allowed = f"below {samples.total_steps}, the steps of the run"
        require(history.step < samples.total_steps, "step", history.step, allowed)
        terminal = Terminal(enabled=world.rank == 0, stderr=True)
        origin = restore_state(samples, history, training.trainer, terminal)
        on_rank0(lambda: prepare_output(output))
        result = rerun(training.trainer, samples.batches(history.step))
        parts = _gather(_collect_part(result, samples, history.step, output))
        report = build_report(history, samples, origin, result, parts)
        if world.rank == 0:
            write_json(output / PLAN, [line for part in parts for line in part.plan])
            write_json(output / STEP, report.to_json())
            show_report(report, output)
        dist.barrier()
        return 0 if report.repeats_the_run else 1
    finally:
        samples.close()
        training.trainer.engine.destroy()


def _collect_part(result: StepResult, samples: Samples, step: int, output: Path) -> ProcessResult:
    """Return this process's results of the step; write the pictures of its samples."""
    part = ProcessResult([], [], [], result.digest)
    losses = iter(result.samples)
    data = samples.config.data
    batches = zip(samples.places(), result.batches, result.micro_batches, strict=True)
    for (rank, number), batch, means in batches:
        part.micro_batches.append(
            MicroBatchResult(rank, number, means.loss, means.base, means.distill)
        )
        draws = samples.draw(step, batch.ordinals.numpy())
        planned = describe_samples(batch, draws, samples.index)
        pictures = save_images(output, batch, data.mean, data.std)
        for plan, names in zip(planned, pictures, strict=True):
            part.plan.append({"rank": rank, "micro_batch": number} | plan | names)
            own = next(losses)
            part.samples.append(
                SampleResult(
                    rank=rank,
                    micro_batch=number,
                    ordinal=plan["ordinal"],
                    image=plan["image"],
                    loss=own.loss,
                    base=own.base,
                    distill=own.distill,
                    teacher=own.teacher,
                )
            )
    return part


def _gather(part: ProcessResult) -> list[ProcessResult]:
    """Return the results of all processes, by rank. A collective."""
    parts: list[ProcessResult] = [part] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts
