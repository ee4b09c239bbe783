"""A run at step 0, built from its `Config`, and its description in the heading."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdeit.checkpoint.weight_files import WeightFiles
from fastdeit.checkpoint.writer import CheckpointWriter
from fastdeit.config.schema import Config
from fastdeit.data.build import (
    build_data,
    build_eval_loader,
    build_quarantine,
    build_train_loader,
    pipeline_options,
)
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch, make_blank_batch
from fastdeit.data.table import note_counts
from fastdeit.display.console import RunConsole
from fastdeit.distributed.collectives import each_rank
from fastdeit.distributed.world import World
from fastdeit.models.build import (
    build_model,
    build_teacher,
    check_compilation,
    hub_config,
    precision,
    weight_metadata,
)
from fastdeit.models.finetune.trainable import count_parameters
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.reliability.health import Health
from fastdeit.reliability.supervisor import Supervisor
from fastdeit.run.identity import check_same_images
from fastdeit.run.inputs import (
    Inputs,
    check_same_inputs_everywhere,
    describe_inputs,
    describe_samples,
)
from fastdeit.run.preflight import check_batch_fits, note_damaged, note_limits, note_weights
from fastdeit.run.report import ReportWriter
from fastdeit.run.state import Progress, Run, RunData
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.build import open_cache
from fastdeit.teacher_cache.reader import CachedTeacher
from fastdeit.tracking.build import build_trackers
from fastdeit.tracking.callbacks import Callback
from fastdeit.tracking.log import MetricLog
from fastdeit.tracking.trackers import Trackers
from fastdeit.training.build import (
    build_trainer,
    build_utilisation,
    count_copies,
    note_reduction,
    note_schedule,
)
from fastdeit.training.flops import Utilisation
from fastdeit.training.graphs.build import build_graphs, note_graphs
from fastdeit.training.memory.build import note_memory
from fastdeit.training.trainer import Trainer


@dataclass(frozen=True)
class Training:
    """The plan of the training images, and a trainer at step 0."""

    plan: Plan
    cached_teacher: CachedTeacher | None
    trainer: Trainer
    inputs: Inputs
    drop_path: tuple[float, ...]
    """The student's DropPath rate by block, for each copy of a batch; empty for a timm model."""
    utilisation: Utilisation
    notes: list[str]
    """Notes on weights of another shape that were made to fit, and on the memory of a GPU."""


def build_training(config: Config, world: World, index: Index) -> Training:
    """Build the plan over the training images, and the student under DeepSpeed with its teacher.

    A collective.
    """
    check_batch_fits(config, world.size, len(index))
    each_rank(lambda: check_compilation(config, world))
    plan = build_plan(config, index.sizes)
    pixels = pipeline_options(config, world).describe()
    teacher = each_rank(lambda: build_teacher(config, world, index.classes))
    cached_teacher = None
    decode = None
    if config.distill.cache:
        cached_teacher = open_cache(config, plan, index, pixels, teacher)
        hard = config.distill.distillation_type == "hard"
        decode = cached_teacher.decoder(hard, config.distill.distillation_tau)
    model, notes = each_rank(lambda: build_model(config, index.classes))
    samples = describe_samples(plan, index, config.optim.batch_size, pixels)
    inputs = each_rank(lambda: describe_inputs(config, samples, teacher, cached_teacher, model))
    check_same_inputs_everywhere(inputs)
    # read before the trainer wraps the model
    drop_path = getattr(model, "drop_path_rates", ()) * count_copies(config)
    utilisation = build_utilisation(config, world, model)
    notes += note_memory(config, world, model, teacher, len(index.classes))
    steps_per_epoch = plan.steps_per_epoch(config.optim.batch_size)
    trainer = build_trainer(config, world, model, teacher, steps_per_epoch, decode)
    return Training(plan, cached_teacher, trainer, inputs, drop_path, utilisation, notes)


def build_run(
    config: Config,
    recipe: str,
    world: World,
    folder: RunFolder,
    supervisor: Supervisor,
    callbacks: Sequence[Callback] = (),
) -> tuple[Run, list[str]]:
    """Build a run at step 0; return it with notes for the user. Nothing is written. A
    collective."""
    data, training = _build_data(config, world)
    classes = data.train_index.classes
    model = training.trainer.state.model
    weights = WeightFiles(
        folder, weight_metadata(config, classes, model), hub_config(config, classes, model)
    )
    steps_per_epoch = data.train_loader.steps_per_epoch
    batch_size = config.optim.batch_size
    console = RunConsole(config.optim.epochs, steps_per_epoch, enabled=world.rank == 0)
    is_first = world.rank == 0
    trackers = build_trackers(config, folder, callbacks, console.note) if is_first else Trackers()
    console.listen(trackers.note)
    run = Run(
        config=config,
        recipe=recipe,
        world=world,
        folder=folder,
        data=data,
        trainer=training.trainer,
        inputs=training.inputs,
        console=console,
        supervisor=supervisor,
        checkpoints=CheckpointWriter(weights, config.checkpoint.keep_checkpoints, world.rank),
        health=Health(folder, steps_per_epoch, batch_size, console.note),
        log=MetricLog(folder, steps_per_epoch, batch_size, trackers, console.note),
        trackers=trackers,
        report=ReportWriter(folder, world.rank == 0, console.note),
        progress=Progress(),
        utilisation=training.utilisation,
    )
    return run, [*training.notes, *_list_notes(run)]


def _list_notes(run: Run) -> list[str]:
    """Return notes on the weights, the data, the machine and the report of a run."""
    indexes = (run.data.train_index, run.data.val_index)
    return [
        *note_weights(run.config),
        *(note for index in indexes for note in index.notes),
        *note_counts(*map(len, indexes)),
        *(note for index in indexes for note in note_damaged(index)),
        *note_limits(run.world),
        *([run.report.missing] if run.report.missing else []),
    ]


def _build_data(config: Config, world: World) -> tuple[RunData, Training]:
    train_index, val_index = build_data(config)
    train_index, quarantine = build_quarantine(config, train_index)
    val_index, val_quarantine = build_quarantine(config, val_index)
    check_same_images(train_index, val_index, pipeline_options(config, world).describe())
    training = build_training(config, world, train_index)
    plan = training.plan
    cached_teacher = training.cached_teacher
    train_loader = build_train_loader(
        config,
        world,
        train_index,
        plan,
        drop_path=training.drop_path,
        quarantine=quarantine,
        teacher_records=cached_teacher,
    )
    data = RunData(
        train_index=train_index,
        val_index=val_index,
        plan=plan,
        cached_teacher=cached_teacher,
        quarantine=quarantine,
        train_loader=train_loader,
        val_loader=build_eval_loader(config, world, val_index, val_quarantine),
    )
    return data, training


def describe_run(run: Run, notes: list[str]) -> dict[str, str]:
    """Return the rows of the heading, by name."""
    config = run.config
    data = run.data
    batch_size = config.optim.batch_size
    epochs = config.optim.epochs
    rows = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": _describe_devices(run),
        "data": _describe_data(run),
        _name_model(run): _describe_model(run),
        "augmentation": data.plan.spec.describe(),
        "decoding": _describe_decoding(data.train_loader.options),
        **_describe_teacher(run),
        "schedule": f"{epochs} epochs of {run.steps_per_epoch} steps, batch {batch_size}",
    }
    notes = [*notes, *note_schedule(config, epochs * run.steps_per_epoch)]
    wanted = config.run.zero_stage
    stage = run.trainer.engine.zero_optimization_stage()
    if stage != wanted:
        reason = "the same maths, gradients summed in fp32"
        notes = [*notes, f"ZeRO {wanted} replaced by {stage}: {reason}"]
    if config.run.deepspeed_config:
        reason = "it honours --deepspeed-config, but waits for the device"
        notes = [*notes, f"DeepSpeed's own step instead of fastdeit's: {reason}"]
    notes += note_reduction(config, run.trainer.update)
    return rows | {f"note {number}": note for number, note in enumerate(notes, 1)}


def record_graphs(run: Run) -> list[str]:
    """Record the CUDA graphs of a run's steps, before its loader starts; return notes on them. A
    collective."""
    config = run.config
    trainer = run.trainer
    model = trainer.state.model
    trainer.graphs = build_graphs(config, run.world, model, trainer.update)
    if trainer.graphs is not None:
        trainer.record_graphs(_make_blank(run))
    return note_graphs(config, run.world, trainer)


def _make_blank(run: Run) -> Batch:
    """Return a micro-batch of zeros like those of the run."""
    recorded = run.data.cached_teacher
    return make_blank_batch(
        run.data.train_loader.options.batch_size,
        run.config.data.input_size,
        len(run.trainer.state.model.drop_path_rates) * count_copies(run.config),
        recorded.cache.manifest.record.itemsize if recorded else 0,
        run.world.device,
    )


def _describe_decoding(options: PipelineOptions) -> str:
    place = ", augmented on the GPU" if options.uses_kernels else ""
    return f"{options.describe()}{place}"


def _describe_devices(run: Run) -> str:
    device = run.world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    stage = run.trainer.engine.zero_optimization_stage()
    return f"{run.world.size} x {name}, {precision(run.config, run.world)[0]}, ZeRO {stage}"


def _describe_data(run: Run) -> str:
    data = run.data
    config = run.config.data
    images = f"{len(data.train_index):,} training and {len(data.val_index):,} validation images"
    classes = len(data.train_index.classes)
    return f"{config.data_path}: {images}, {classes} classes, {config.input_size} px"


def _name_model(run: Run) -> str:
    return "student" if run.trainer.teacher or run.data.cached_teacher else "model"


def _describe_model(run: Run) -> str:
    # ZeRO 3 leaves no parameters in the engine's own model
    parameters, trained = count_parameters(run.trainer.state.eval_model)
    frozen = "" if trained == parameters else f", {trained:,} of them trained"
    compiled = ", compiled" if run.config.run.compile == "on" else ""
    return f"{run.config.model.model}, {parameters / 1e6:.2f} M parameters{frozen}{compiled}"


def _describe_teacher(run: Run) -> dict[str, str]:
    rows = {}
    if recorded := run.data.cached_teacher:
        rows["teacher"] = recorded.describe()
    if live := run.trainer.teacher:
        rows.setdefault("teacher", live.describe())
        rows["teacher's images"] = live.describe_view()
        micro_batch = run.data.train_loader.options.batch_size
        rows["teacher's form"] = live.describe_execution(micro_batch)
    return rows or {"teacher": "none"}
