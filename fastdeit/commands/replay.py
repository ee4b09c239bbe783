"""`fastdeit replay RUN --step N`: takes one step of a run again, out of the run's folder, and shows
all that went into it.

fastdeit replay RUN --step N [--output DIR] [flags of train that say where things are now, as
--data-path] On as many processes as the run had: deepspeed --no_local_rank --module fastdeit replay
RUN --step N

Step N is the one that follows N optimizer steps, the first is step 0. `step-N` is the checkpoint
that it begins with; failure files, bad-steps.jsonl and spikes.jsonl name it by N; in metrics.jsonl,
where a line tells how many steps are done, it belongs to the first line of more than N. DIR
(default: RUN/replay-N) gets the images as PNG, plan.json and step.json.

It begins with the newest state from before the step, and trains up to it in memory; nothing else in
the folder is touched. On fewer processes than the run had, each stands for several, one after the
other, which changes nothing but the order in which gradients are summed. Exit code 1: the samples
are not those that the run recorded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index
from fastdeit.data.snapshot import reconcile
from fastdeit.distributed.collectives import first_on_rank0, on_every_rank, on_rank0
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.replay.files import PLAN, STEP, prepare_output, save_images, show, write_json
from fastdeit.replay.record import Record, check_folder, find_state, read_record
from fastdeit.replay.report import report
from fastdeit.replay.samples import Samples
from fastdeit.replay.step import Line, StepResult, describe_samples, rerun
from fastdeit.run.build import build_training
from fastdeit.run.identity import check_same_everywhere, check_same_samples, check_same_settings
from fastdeit.run.preflight import check_config
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.build import build_deepspeed_config
from fastdeit.training.trainer import Trainer


def replay_command(argv: Sequence[str]) -> int:
    """`fastdeit replay`: 0; 1 if the samples are not the recorded ones; exit code 2 for what cannot
    be taken again."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    with one_line_errors():
        asked, flags = _parser().parse_known_args(list(argv))
        folder = RunFolder(Path(asked.run))
        check_folder(folder)
        named = ["--config", str(folder.config), *flags, "--output-dir", str(folder)]
        config, _ = parse_config(named, "fastdeit replay")
        check_same_settings(config, folder)
        world = init_distributed()
        check_same_everywhere(config)
        record = on_rank0(lambda: read_record(config, folder, asked.step))
        config = _as_recorded(config, record, world)
        output = asked.output or folder.replay(asked.step)
        with use_backend(config.run.kernels):
            return _replay(config, world, record, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastdeit replay", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--local_rank", "--local-rank", type=int)  # the launcher passes it
    return parser


def _as_recorded(config: Config, record: Record, world: World) -> Config:
    """The settings in the form that the step was taken in. Raises ValueError if these processes
    cannot share it out alike."""
    then = record.attempt
    whole = [size for size in range(1, then.world_size + 1) if then.world_size % size == 0]
    allowed = f"{', '.join(map(str, whole))}, as the run had {then.world_size} processes"
    require(world.size in whole, "num_gpus", world.size, allowed)
    config = config.replace(
        optim={"micro_batch": then.micro_batch},
        run={
            "zero_stage": then.zero_stage,
            "offload_optimizer": then.offload_optimizer,
            "precision": then.precision,
        },
        augment={"augment_backend": then.augment_backend},
        data={"decoder": then.decoder},
    )
    on_every_rank(lambda: check_config(config, world.size))
    on_every_rank(lambda: build_deepspeed_config(config, world))
    return config


def _replay(config: Config, world: World, record: Record, output: Path) -> int:
    now = first_on_rank0(lambda: build_train_index(config))
    index, gone = reconcile(now, record.folder.train_images)
    training = build_training(config, world, index)
    samples = Samples(config, world, record, index, gone, training)
    try:
        require(
            record.step < samples.total_steps,
            "step",
            record.step,
            f"below {samples.total_steps}, the steps of the run",
        )
        origin = _take_up(samples, record, training.trainer)
        on_rank0(lambda: prepare_output(output))
        taken = rerun(training.trainer, samples.batches(record.step))
        parts = _gather(_local_part(taken, samples, record.step, output))
        told = report(record, samples, origin, taken, parts)
        if world.rank == 0:
            write_json(output / PLAN, [line for part in parts for line in part["plan"]])
            write_json(output / STEP, told)
            show(told, output)
        dist.barrier()
        return 1 if told["recorded"]["same_samples"] is False else 0
    finally:
        samples.close()
        training.trainer.engine.destroy()


def _take_up(samples: Samples, record: Record, trainer: Trainer) -> Line:
    """Brings the trainer to where the step begins; tells how. A collective."""
    found = find_state(record, samples.config.checkpoint.resume, trainer.state.layout())
    if found is not None:
        check_same_samples(found.state, samples.fingerprints, found.path)
        trainer.state.load(found.tensors, found.state)
    began = trainer.step
    for step in range(began, record.step):
        if record.skipped_before(step):
            trainer.skip_step()
        else:
            trainer.train_step(samples.batches(step))
    return {
        "from": "the weights that the run began with" if found is None else str(found.path),
        "trained": [step for step in range(began, record.step) if not record.skipped_before(step)],
        "notes": []
        if found is None
        else [f"checkpoint skipped: {fault}" for fault in found.damaged],
    }


def _local_part(taken: StepResult, samples: Samples, step: int, output: Path) -> Line:
    """What this process knows of the step: its micro-batches, its samples' losses and their plan;
    writes their pictures."""
    planned: list[Line] = []
    micro_batches: list[Line] = []
    data = samples.config.data
    for (rank, place), batch, losses in zip(
        samples.places(), taken.batches, taken.micro_batches, strict=True
    ):
        where = {"rank": rank, "micro_batch": place}
        described = describe_samples(
            batch, samples.draws(step, batch.ordinals.numpy()), samples.index
        )
        pictures = save_images(output, batch, data.mean, data.std)
        planned += [where | line | names for line, names in zip(described, pictures, strict=True)]
        micro_batches.append(where | losses)
    names = ("rank", "micro_batch", "ordinal", "image")
    lines = [
        {name: line[name] for name in names} | own
        for line, own in zip(planned, taken.samples, strict=True)
    ]
    return {
        "micro_batches": micro_batches,
        "samples": lines,
        "plan": planned,
        "digest": taken.digest,
    }


def _gather(mine: Line) -> list[Line]:
    """Of every process; a collective."""
    parts: list[Line] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts
