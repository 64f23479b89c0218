"""Trains a batch of experiments, and writes the folder of each."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from common.files import json_bytes, rename, utc_time
from common.problems.problem import Results
from common.signals import Interrupted
from common.sweeps.experiment import Experiment
from common.sweeps.folder import host_facts, new_folder, reopen_folder
from common.sweeps.outputs import Checkpoints, Progress, SweepContext, numbers, save_checkpoint, say
from common.tensor_files import tensor_bytes
from common.training.history import EPOCHS, INTERRUPTED, STALLED
from common.training.native_engine import Engine, Kernel, NativeEngine
from common.training.torch_engine import TorchEngine
from common.training.trainer import Trainer

_REASONS = {STALLED: "stalled: steps no longer change any parameter", EPOCHS: "all epochs done"}
# After a signal, running experiments are saved for this long: a launcher kills processes that take longer.
_SAVING_SECONDS = 1.2
# Approximate time to compute and save the metrics of one validation.
_SECONDS_PER_VALIDATION = 2e-6


def build_engine(experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None) -> Engine:
    """Returns the engine of a batch: the native one if there is a kernel, else torch's."""
    problems = [experiment.problem for experiment in experiments]
    factors = zip(*(experiment.factors for experiment in experiments), strict=True)
    model = problems[0].model([torch.stack(each).to(device) for each in factors])
    objective = problems[0].objective(problems, model.values)
    states, num_steps = [experiment.optimizer_state for experiment in experiments], experiments[0].state.epoch + 1
    hyperparameters = problems[0].optimizer.hyperparameters
    settings = {name: [each.parameters[name] for each in experiments] for name in hyperparameters}
    optimizer = problems[0].optimizer(settings, model, num_steps, states if all(states) else None)
    parts = model, objective, optimizer
    return NativeEngine(*parts, kernel) if kernel else TorchEngine(*parts)


def train_batch(
    experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None, context: SweepContext
) -> None:
    """Trains experiments of equal shape that are at the same epoch until all have ended, or a signal comes. If they
    ended in an earlier run, writes their results.

    Never raises: an experiment that fails does not end the others, and a batch that fails does not end the next.
    """
    try:
        engine = build_engine(experiments, device, kernel)
        for experiment in experiments:
            if context.stop:
                return
            with context.guard(experiment):
                _begin(experiment, context, device, engine.name)
        context.disk.sync()
        indices = [index for index, experiment in enumerate(experiments) if not experiment.failed]
        if len(indices) < len(experiments):
            experiments, engine = [experiments[index] for index in indices], engine.select(torch.tensor(indices))
        if experiments and experiments[0].state.stop_reason is None:
            _train(experiments, engine, context)
        else:
            for experiment in experiments:
                if not experiment.failed:
                    _finish(experiment, experiment.final_output, context)
    except Exception as error:
        for experiment in experiments:
            if not experiment.released:
                context.fail(experiment, error)


def _train(experiments: Sequence[Experiment], engine: Engine, context: SweepContext) -> None:
    experiment_of = {experiment.state: experiment for experiment in experiments}
    every, problem = experiments[0].parameters["validate_every"], experiments[0].problem

    def measure(states, *observed):
        return problem.measure([experiment_of[state].problem for state in states], *observed)

    most = problem.max_zero_loss_validations
    trainer = Trainer(engine, list(experiment_of), every, most, measure, problem.measures_at_once)
    outputs = [Checkpoints(context), *([context.plots] if context.plots else []), Progress(context, trainer)]
    while trainer.running and not context.stop:
        for state, last_engine, index, output in trainer.advance():
            if context.disk.seconds_after_signal() > _SAVING_SECONDS:
                break  # these continue from older checkpoints
            experiment, output = experiment_of[state], torch.from_numpy(output)
            if experiment.failed:
                continue
            with context.guard(experiment):
                if experiment.parameters["store_checkpoints"]:
                    save_checkpoint(context, experiment, last_engine, index, output)
                _finish(experiment, output, context)
        running = [experiment_of[state] for state in trainer.running]
        for each in outputs:
            if not context.stop:
                each.on_validation(trainer, running)
        context.disk.sync_if_due()
        if all(experiment.failed for experiment in running):
            break
    outputs[-1].close()
    if trainer.running:
        _interrupt(trainer, [experiment_of[state] for state in trainer.running], context)


def _begin(experiment: Experiment, context: SweepContext, device: torch.device, engine_name: str) -> None:
    """Makes or reopens the experiment's folder, which can be used after the next sync."""
    parameters, previous, epoch = experiment.parameters, experiment.previous, experiment.state.epoch
    facts = host_facts(device, engine_name)
    sweep = {**context.sweeps[Path(parameters["output_dir"]).resolve()], "experiment": experiment.number}
    provenance = {**facts, "start_time": utc_time(), "sweep": sweep, "identity": experiment.identity.record}
    if previous is None:
        folder = new_folder(parameters, provenance, context.making, str(experiment.number), epoch)

        def publish() -> None:
            folder.publish()
            experiment.folder = folder
            num_parameters = sum(factor.numel() for factor in experiment.factors)
            last = f"model parameters: {num_parameters}, device: {device}"
            context.log(experiment, *(f"{name}: {value}" for name, value in parameters.items()), last)

        context.disk.after_syncs(experiment, folder.path, publish)
        return
    before = previous.provenance
    resumed = before.get("resumed") if isinstance(before.get("resumed"), int) else 0
    provenance |= {"start_time": before.get("start_time"), "sweep": before["sweep"], "resumed": resumed + 1}
    # The host that computed the part before.
    provenance["before"] = {name: before.get(name) for name in facts if name != "command"}
    path = Path(parameters["output_dir"]) / previous.path.name  # as given, not resolved
    experiment.folder = folder = reopen_folder(path, parameters, provenance)
    file = folder.write_parameters(False, None, epoch)
    context.disk.after_syncs(experiment, folder.path, partial(rename, *file), folder.remove_old_checkpoints)
    where = f"after epoch {epoch:,}" if epoch >= 0 else "from the beginning"
    context.log(experiment, f"resumed {where}, device: {device}")


def _finish(experiment: Experiment, output: torch.Tensor, context: SweepContext) -> None:
    """Writes the results of an experiment that ended, all but its last checkpoint."""
    state, folder = experiment.state, experiment.folder
    metrics = state.history.last_values()

    def mark_finished() -> None:
        file = folder.write_parameters(True, state.stop_reason, state.epoch, metrics)
        # The first sync is for the content of all files, the second for their names, the third for this one's name.
        context.disk.after_syncs(experiment, folder.path, lambda: None, partial(rename, *file), lambda: None)

    with context.guard(experiment):
        try:
            with context.stop.raising():
                results = experiment.problem.results(state, output)
        except Interrupted:
            # -resume takes the output from the checkpoint, or begins anew.
            return
        _write_end(experiment, results, context)
        if experiment.parameters["plot_metrics"]:
            context.plots.draw(experiment, mark_finished)
        else:
            mark_finished()
        experiment.release()
    context.disk.sync_if_due()


def _write_end(experiment: Experiment, results: Results, context: SweepContext) -> None:
    """Writes results, and logs how the experiment ended."""
    state, folder = experiment.state, experiment.folder
    for name, tensor in results.tensors.items():
        context.disk.rename_after_sync(experiment, folder.write(name, tensor_bytes(tensor)))
    if results.numbers:
        context.disk.rename_after_sync(experiment, folder.write(results.name, json_bytes(results.numbers)))
    values = state.history.last_values() | results.extra_metrics
    headline = {name: value for name, value in values.items() if experiment.problem.headline.fullmatch(name)}
    reason = _REASONS.get(state.stop_reason, state.stop_reason.replace("_", " "))
    end = f"{reason}, epoch {state.epoch:,}: "
    folder.log(end + numbers(values))
    say(f"{experiment.number}/{context.num_experiments} {folder.path}: {end}{numbers(headline)}")


def _interrupt(trainer: Trainer, experiments: Sequence[Experiment], context: SweepContext) -> None:
    """Saves running experiments while there is time, those with the oldest checkpoints first."""
    ended = list(zip(experiments, trainer.interrupt(), strict=True))
    ended.sort(key=lambda pair: pair[0].saved_at.get("store_checkpoints", 0))
    most_seconds = _SAVING_SECONDS - _SECONDS_PER_VALIDATION * (trainer.epoch // trainer.validate_every)
    num_unsaved = 0
    for experiment, (_, engine, index, _) in ended:
        if experiment.failed:
            continue
        with context.guard(experiment):
            if context.disk.seconds_after_signal() <= _SAVING_SECONDS:
                file = experiment.folder.write_parameters(False, INTERRUPTED, trainer.epoch)
                context.disk.rename_after_sync(experiment, file)
            if experiment.parameters["store_checkpoints"] and trainer.epoch >= 0:
                saved = False
                if context.disk.seconds_after_signal() <= most_seconds:
                    with suppress(Interrupted):  # by a metric that takes long
                        save_checkpoint(context, experiment, engine, index)
                        saved = True
                num_unsaved += not saved
        context.disk.sync_if_due()
    if num_unsaved:
        say(f"no time for {num_unsaved} of {len(ended)} checkpoints: -resume continues from older ones, if any")
    for experiment, (state, _, _, output) in ended:
        if not experiment.failed and context.disk.seconds_after_signal() <= most_seconds:
            with context.guard(experiment), suppress(Interrupted):
                _write_end(experiment, experiment.problem.results(state, torch.from_numpy(output)), context)
