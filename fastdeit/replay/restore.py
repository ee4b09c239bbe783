"""The state before a step: a checkpoint, trained up to the step in memory."""

import statistics
from collections.abc import Sequence

from fastdeit.display.progress import ProgressBar, TimeLeft, format_duration
from fastdeit.display.terminal import Terminal
from fastdeit.replay.history import StepHistory, find_state
from fastdeit.replay.inputs import compare_inputs
from fastdeit.replay.results import Origin
from fastdeit.replay.samples import Samples
from fastdeit.run.inputs import check_same_samples
from fastdeit.training.trainer import Trainer


def restore_state(
    samples: Samples, history: StepHistory, trainer: Trainer, terminal: Terminal
) -> Origin:
    """Bring the trainer to the start of the step; print from where, and the progress. A collective.

    Raise ValueError as `find_state` does, and for a checkpoint of other samples.
    """
    found = find_state(history, samples.config.checkpoint.resume, trainer.state.layout())
    source = "the weights that the run began with"
    notes = []
    inputs = compare_inputs(history, found, samples.inputs)
    if found is not None:
        # a checkpoint of another run may have other samples: those of this run's start count
        is_own = history.folder.holds(found.path) or "samples" not in inputs.recorded
        recorded = found.state if is_own else {"inputs": inputs.recorded}
        now = samples.inputs["samples"]
        check_same_samples(recorded, now, now.keys(), found.path)
        trainer.state.load(found.tensors, found.state)
        source = str(found.path)
        notes = [f"checkpoint skipped: {fault}" for fault in found.damaged]
    steps = range(trainer.step, history.step)
    trained = [step for step in steps if not history.skipped_before(step)]
    batch_size = samples.config.optim.batch_size
    terminal.say(describe_start(history, source, len(trained), batch_size))
    for line in inputs.changed:
        terminal.say(f"another input than in the run: {line}")
    repeat_steps(samples, history, trainer, trained, terminal)
    return Origin(source, trained, inputs, notes + inputs.describe())


def describe_start(history: StepHistory, source: str, count: int, batch_size: int) -> str:
    """Return a line with the state that the replay starts from, how many steps it repeats first,
    and how long those took the run."""
    begin = f"step {history.step} of {history.folder} from {source}"
    if not count:
        return f"{begin}: no step to repeat first"
    steps = "1 step" if count == 1 else f"{count:,} steps"
    rates = [line["images_per_s"] for line in history.metrics if line.get("images_per_s")]
    if not rates:
        return f"{begin}: {steps} to repeat first"
    duration = format_duration(count * batch_size / statistics.median(rates))
    return f"{begin}: {steps} to repeat first, {duration} at the speed of the run"


def repeat_steps(
    samples: Samples,
    history: StepHistory,
    trainer: Trainer,
    trained: Sequence[int],
    terminal: Terminal,
) -> None:
    """Train `trained` of the steps up to that of the history, skip the others as the run did; show
    the progress. A collective."""
    bar = ProgressBar(terminal, len(trained), "repeating", transient=True)
    time_left = TimeLeft(len(trained))
    if trained:
        bar.start()
    try:
        for done, step in enumerate(trained, 1):
            while trainer.step < step:
                trainer.skip_step()
            trainer.train_step(samples.batches(step))
            place = f"step {step + 1} of {history.step}"
            left = time_left.describe(done)
            bar.update(done, place, line=f"{place}, about {left} left" if left else "")
        while trainer.step < history.step:
            trainer.skip_step()
    finally:
        bar.stop()
