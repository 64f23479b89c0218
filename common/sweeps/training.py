"""Trains a batch of experiments, and writes the folder of each."""

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.files import json_bytes, utc_time
from common.signals import Stop
from common.sweeps.checkpoint import checkpoint_content
from common.sweeps.experiment import Experiment
from common.sweeps.folder import host_facts, new_folder, reopen_folder
from common.sweeps.plots import MetricPlots
from common.sweeps.progress import Pace, Progress, numbers, say
from common.tensor_files import tensor_bytes
from common.training.history import EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, Metrics
from common.training.native_engine import Engine, Kernel, NativeEngine
from common.training.torch_engine import TorchEngine
from common.training.trainer import Trainer

# From this many experiments on, those that end as expected are counted, not listed.
MANY = 50
_REASONS = {STALLED: "stalled: steps no longer change any parameter", EPOCHS: "all epochs done"}


@dataclass
class SweepContext:
    """What the batches of a sweep have in common."""

    num_experiments: int  # in the list, those of other processes included
    records: dict[Path, dict[str, Any]]  # what folders record of the sweep, by output folder
    rank: int  # of this process
    stop: Stop
    plots: MetricPlots
    failures: list[tuple[int, str]] = field(default_factory=list)  # numbers of experiments that failed, and why
    # Experiments that are to be marked as finished with their last metrics, and when that is done again.
    ended: list[tuple[Experiment, dict[str, float]]] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    def fail(self, experiments: Sequence[Experiment], error: Exception) -> None:
        """Records the failure of those experiments of a batch whose results are not written."""
        failed = [experiment for experiment in experiments if not experiment.has_results]
        which, place = f"{len(failed)} of {self.num_experiments} experiments", failed[0].parameters["output_dir"]
        if len(failed) == 1:
            which = f"{failed[0].number}/{self.num_experiments}"
            place = failed[0].folder.path if failed[0].folder else place
        self.failures.append((len(failed), f"{place}: {type(error).__name__}: {error}"))
        say(f"{which} failed: {self.failures[-1][1]}")
        for experiment in failed:
            with suppress(Exception):
                experiment.folder.write_parameters(False, "failed", experiment.epoch)
                experiment.folder.log("failed: " + "".join(traceback.format_exception(error)))
            experiment.release()
            experiment.stop_reason = "failed"

    def mark_finished(self) -> None:
        """Marks the experiments that ended as finished, once everything else of them is on the disk."""
        begin, ended, self.ended = time.monotonic(), self.ended, []
        if ended:
            os.sync()
        for experiment, metrics in ended:
            try:
                experiment.folder.write_parameters(True, experiment.stop_reason, experiment.epoch, metrics)
            except OSError as error:
                experiment.has_results = False
                self.fail([experiment], error)
        self.pace.took(time.monotonic() - begin)

    def log(self, experiment: Experiment, *lines: str) -> None:
        """Logs lines to the experiment's file, or to the console if there is only one experiment."""
        experiment.folder.log(*lines)
        if self.num_experiments == 1 and not experiment.parameters["file_log"]:
            say("\n".join(lines))

    def report_end(self, experiment: Experiment, reason: str, metrics: Mapping[str, float]) -> None:
        """Logs all metrics at the end of a run, and prints the most important ones: of many experiments only if the run
        needs attention.
        """
        headline = {name: value for name, value in metrics.items() if experiment.problem.headline.fullmatch(name)}
        end = f"{reason}, epoch {experiment.epoch:,}: "
        experiment.folder.log(end + numbers(metrics))
        if self.num_experiments < MANY or experiment.stop_reason not in (ZERO_LOSS, EPOCHS):
            say(f"{experiment.number}/{self.num_experiments} {experiment.folder.path}: {end}{numbers(headline)}")


def build_engine(experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None) -> Engine:
    """Returns the engine of a batch: the native one if there is a kernel, else torch's."""
    problems = [experiment.problem for experiment in experiments]
    factors = zip(*(experiment.factors for experiment in experiments), strict=True)
    model = problems[0].model([torch.stack(each).to(device) for each in factors])
    objective = problems[0].objective(problems, model.values)
    states, num_steps = [experiment.optimizer_state for experiment in experiments], experiments[0].epoch + 1
    hyperparameters = problems[0].optimizer.hyperparameters
    settings = {name: [each.parameters[name] for each in experiments] for name in hyperparameters}
    optimizer = problems[0].optimizer(settings, model, num_steps, states if all(states) else None)
    parts = model, objective, optimizer
    return NativeEngine(*parts, kernel) if kernel else TorchEngine(*parts)


def build_trainer(experiments: Sequence[Experiment], engine: Engine) -> Trainer:
    """Returns the trainer of a batch."""
    problem, every = experiments[0].problem, experiments[0].parameters["validate_every"]

    def measure(states: Sequence[Experiment], *observed: Any) -> Metrics:
        return problem.measure([state.problem for state in states], *observed)

    return Trainer(engine, experiments, every, problem.max_zero_loss_validations, measure, problem.measures_at_once)


def train_batch(
    experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None, context: SweepContext
) -> None:
    """Trains experiments of equal shape that are at the same epoch until all have ended, or a signal comes. If they
    ended in an earlier run, writes their results. An error ends the batch: `context` records which experiments failed.
    """
    try:
        engine = build_engine(experiments, device, kernel)
        for experiment in experiments:
            if context.stop:
                return
            _begin(experiment, context, device, engine.name)
        if experiments[0].stop_reason is None:
            _train(build_trainer(experiments, engine), context)
        else:
            _finish(experiments, context)
    except Exception as error:
        context.fail(experiments, error)


def _begin(experiment: Experiment, context: SweepContext, device: torch.device, engine_name: str) -> None:
    """Makes or reopens the experiment's folder."""
    parameters, previous, epoch = experiment.parameters, experiment.previous, experiment.epoch
    facts = host_facts(device, engine_name)
    sweep = {**context.records[experiment.output_dir], "experiment": experiment.number}
    provenance = {**facts, "start_time": utc_time(), "sweep": sweep, "identity": experiment.identity.record}
    if previous is None:
        experiment.folder = new_folder(parameters, provenance, epoch)
        num_parameters = sum(factor.numel() for factor in experiment.factors)
        last = f"model parameters: {num_parameters}, device: {device}"
        unused = () if parameters["random_target"] else experiment.problem.target_flags
        context.log(experiment, *(f"{name}: {parameters[name]}" for name in parameters if name not in unused), last)
        return
    before = previous.provenance
    resumed = before.get("resumed") if isinstance(before.get("resumed"), int) else 0
    provenance |= {"start_time": before.get("start_time"), "sweep": before["sweep"], "resumed": resumed + 1}
    # The host that computed the part before.
    provenance["before"] = {name: before.get(name) for name in facts if name != "command"}
    path = Path(parameters["output_dir"]) / previous.path.name  # as given, not resolved
    experiment.folder = reopen_folder(path, parameters, provenance)
    experiment.folder.write_parameters(False, None, epoch)
    where = f"after epoch {epoch:,}" if epoch >= 0 else "from the beginning"
    context.log(experiment, f"resumed {where}, device: {device}")


def _train(trainer: Trainer, context: SweepContext) -> None:
    progress, pace = Progress(trainer, context.rank > 0), Pace()
    try:
        while trainer.running and not context.stop:
            ended = trainer.advance()
            for experiment, engine, index, output in ended:
                experiment.final_output = torch.from_numpy(output)
                _save_checkpoint(experiment, engine, index)
            _finish([each.state for each in ended], context)
            progress.show(trainer)
            if pace.is_due() and (trainer.epoch + 1) % trainer.validate_every == 0 and not context.stop:
                begin = time.monotonic()
                _write_in_mid_run(trainer, context, progress, pace)
                pace.took(time.monotonic() - begin)
            context.plots.collect()
            if context.pace.is_due():
                context.mark_finished()
    finally:
        progress.close()
    for index, experiment in enumerate(trainer.running):
        _save_checkpoint(experiment, trainer.engine, index)
        experiment.folder.write_parameters(False, INTERRUPTED, experiment.epoch)
        context.report_end(experiment, INTERRUPTED, experiment.history.last_values())


def _write_in_mid_run(trainer: Trainer, context: SweepContext, progress: Progress, pace: Pace) -> None:
    """Writes the checkpoints and plots that are due by -save_every_num_val, and logs."""
    validations = (trainer.epoch + 1) // trainer.validate_every
    should_log, plotted = progress.should_log(), []
    for index, experiment in enumerate(trainer.running):
        parameters = experiment.parameters
        due = validations - parameters["save_every_num_val"]
        # All at once, so that they can be continued in one batch.
        if experiment.saved_at <= due:
            _save_checkpoint(experiment, trainer.engine, index)
            experiment.saved_at = validations
        if should_log and (parameters["file_log"] or context.num_experiments == 1):
            context.log(experiment, f"epoch {trainer.epoch:,}: {numbers(experiment.history.last_values())}")
        plotted += [experiment] * (parameters["plot_metrics"] and experiment.plotted_at <= due)
    # One experiment's plots after the other's.
    if plotted and not context.plots.waiting:
        oldest = min(plotted, key=lambda experiment: experiment.plotted_at)
        oldest.plotted_at = validations
        context.plots.draw(oldest, pace.took)


def _save_checkpoint(experiment: Experiment, engine: Engine, index: int) -> None:
    """Writes the checkpoint of an experiment whose parameters are at an index of the engine's batch, if asked to."""
    if experiment.parameters["store_checkpoints"] and experiment.epoch >= 0:
        experiment.folder.write_checkpoint(checkpoint_content(experiment, engine, index, experiment.final_output))


def _finish(ended: Sequence[Experiment], context: SweepContext) -> None:
    """Writes the results of experiments that ended. After a signal, they are left to a resumed run."""
    for experiment in ended:
        if context.stop:
            return
        folder, metrics = experiment.folder, experiment.history.last_values()
        results = experiment.problem.results(experiment, experiment.final_output)
        for name, tensor in results.tensors.items():
            folder.write(name, tensor_bytes(tensor))
        if results.numbers:
            folder.write(results.name, json_bytes(results.numbers))
        reason = _REASONS.get(experiment.stop_reason, experiment.stop_reason.replace("_", " "))
        if experiment.stands_still:
            reason += ", but the loss did not fall in the second half; give another -lr or more -epochs"
        context.report_end(experiment, reason, metrics | results.extra_metrics)
        finished = experiment, metrics
        if experiment.parameters["plot_metrics"]:
            context.plots.draw(experiment, lambda _, finished=finished: context.ended.append(finished))
        else:
            context.ended.append(finished)
        experiment.release()
