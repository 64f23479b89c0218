"""Trains a batch of experiments, and writes the folder of each."""

import os
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.cli import Parameters
from common.files import json_bytes, utc_time
from common.signals import Stop
from common.sweeps.batches import Batch
from common.sweeps.checkpoint import checkpoint_content
from common.sweeps.experiment import Experiment, Identity
from common.sweeps.folder import host_facts, new_folder, reopen_folder
from common.sweeps.plots import MetricPlots
from common.sweeps.processes import World
from common.sweeps.progress import Pace, numbers, say
from common.tensor_files import tensor_bytes
from common.training.history import EPOCHS, INTERRUPTED, STALLED, ZERO_LOSS, Metrics
from common.training.native_engine import Engine, Kernel, NativeEngine
from common.training.torch_engine import TorchEngine
from common.training.trainer import Trainer

# From this many experiments on, those that end as expected are counted, not listed.
MANY = 50
_REASONS = {STALLED: "stalled: steps no longer change any parameter", EPOCHS: "all epochs done"}


@dataclass
class Sweep:
    """A list of experiments, of which this process runs some."""

    listed: list[tuple[Parameters, Identity]]  # all of them, without repeated ones
    experiments: dict[int, Experiment]  # those that this process runs, by index in the list
    batches: list[Batch]  # of these
    world: World
    num_repeats: int  # further experiments that are equal to one of these
    stop: Stop = field(default_factory=Stop)
    plots: MetricPlots | None = None  # from when it begins
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)  # what folders record of it, by output folder
    failure: str = ""  # why an experiment failed, the first of them
    # Experiments that are to be marked as finished with their last metrics, and when that is done again.
    ended: list[tuple[Experiment, dict[str, float]]] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    def fail(self, experiments: Sequence[Experiment], error: Exception) -> None:
        """Records the failure of those experiments of a batch whose results are not written."""
        failed = [experiment for experiment in experiments if not experiment.has_results]
        is_known = len(failed) == 1 and failed[0].folder
        place = failed[0].folder.path if is_known else failed[0].parameters["output_dir"]
        reason = f"{place}: {type(error).__name__}: {error}"
        say(f"{len(failed)} of {len(self.listed)} experiments failed: {reason}")
        self.failure = self.failure or reason
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
        if len(self.listed) == 1 and not experiment.parameters["file_log"]:
            say("\n".join(lines))

    def report_end(self, experiment: Experiment, reason: str, metrics: dict[str, float]) -> None:
        """Logs all metrics at the end of a run, and prints the most important ones: of many experiments only if the run
        needs attention.
        """
        end, total = f"{reason}, epoch {experiment.epoch:,}: ", len(self.listed)
        experiment.folder.log(end + numbers(metrics))
        is_expected = experiment.stop_reason in (ZERO_LOSS, EPOCHS) or experiment.zero_loss_validations
        if total < MANY or not is_expected:
            headline = {name: each for name, each in metrics.items() if experiment.problem.headline.fullmatch(name)}
            say(f"{experiment.number}/{total} {experiment.folder.path}: {end}{numbers(headline)}")


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


def train_batch(experiments: Sequence[Experiment], device: torch.device, kernel: Kernel | None, sweep: Sweep) -> None:
    """Trains experiments of equal shape that are at the same epoch until all have ended, or a signal comes. If they
    ended in an earlier run, writes their results. An error ends the batch: `sweep` records which experiments failed.
    """
    try:
        engine = build_engine(experiments, device, kernel)
        for experiment in experiments:
            if sweep.stop:
                return
            _begin(experiment, sweep, device, engine.name)
        if experiments[0].stop_reason is None:
            _train(build_trainer(experiments, engine), sweep)
        else:
            _finish(experiments, sweep)
    except Exception as error:
        sweep.fail(experiments, error)


def _begin(experiment: Experiment, sweep: Sweep, device: torch.device, engine_name: str) -> None:
    """Makes or reopens the experiment's folder."""
    parameters, previous, epoch = experiment.parameters, experiment.previous, experiment.epoch
    facts = host_facts(device, engine_name)
    record = {**sweep.records[experiment.output_dir], "experiment": experiment.number}
    provenance = {**facts, "start_time": utc_time(), "sweep": record, "identity": experiment.identity.record}
    if previous is None:
        experiment.folder = new_folder(parameters, provenance, epoch)
        unused = () if parameters["random_target"] else experiment.problem.target_flags
        lines = [f"{name}: {value}" for name, value in parameters.items() if name not in unused]
        lines.append(f"model parameters: {sum(factor.numel() for factor in experiment.factors)}")
    else:
        before = previous.provenance
        provenance |= {"start_time": before.get("start_time"), "sweep": previous.sweep}
        provenance["resumed"] = (before.get("resumed") or 0) + 1
        # The host that computed the part before.
        provenance["before"] = {name: before.get(name) for name in facts if name != "command"}
        path = Path(parameters["output_dir"]) / previous.path.name  # as given, not resolved
        experiment.folder = reopen_folder(path, parameters, provenance, epoch)
        lines = [f"resumed after epoch {epoch:,}" if epoch >= 0 else "resumed from the beginning"]
    sweep.log(experiment, *lines, f"device: {device}")


def _train(trainer: Trainer, sweep: Sweep) -> None:
    begin, pace, log_pace = time.monotonic(), Pace(), Pace()
    # The bar counts the epochs of one experiment, or how many of several have ended: few take all of their epochs.
    first_epoch, total = trainer.epoch, len(trainer.running)
    counted = (trainer.running[0].last_epoch - first_epoch, "epoch") if total == 1 else (total, "experiment")
    options = {"disable": True if sweep.world.rank else None, "unit_scale": total == 1, "mininterval": 0.2}
    with tqdm(total=counted[0], unit=counted[1], miniters=0, smoothing=0, **options) as bar:
        while trainer.running and not sweep.stop:
            ended = trainer.advance()
            for experiment, engine, index in ended:
                _save_checkpoint(experiment, engine, index)
            _finish([each.state for each in ended], sweep)
            bar.postfix = f"epoch {trainer.epoch + 1:,}" if total > 1 else None
            bar.update((trainer.epoch - first_epoch if total == 1 else total - len(trainer.running)) - bar.n)
            if pace.is_due() and (trainer.epoch + 1) % trainer.validate_every == 0 and not sweep.stop:
                now = time.monotonic()
                logs = log_pace.is_due()
                _write_in_mid_run(trainer, sweep, pace, logs)
                if logs:
                    log_pace.took((now - begin) / 200)  # the longer the run, the less often
                pace.took(time.monotonic() - now)
            sweep.plots.collect()
            if sweep.pace.is_due():
                sweep.mark_finished()
    for index, experiment in enumerate(trainer.running):
        _save_checkpoint(experiment, trainer.engine, index)
        experiment.folder.write_parameters(False, INTERRUPTED, experiment.epoch)
        sweep.report_end(experiment, INTERRUPTED, experiment.history.last_values())


def _write_in_mid_run(trainer: Trainer, sweep: Sweep, pace: Pace, logs: bool) -> None:
    """Writes the checkpoints and plots that are due by -save_every_num_val, and logs if asked to."""
    validations, to_plot = (trainer.epoch + 1) // trainer.validate_every, []
    for index, experiment in enumerate(trainer.running):
        parameters = experiment.parameters
        due = validations - parameters["save_every_num_val"]
        # All at once, so that they can be continued in one batch.
        if experiment.saved_at <= due:
            _save_checkpoint(experiment, trainer.engine, index)
            experiment.saved_at = validations
        if logs and (parameters["file_log"] or len(sweep.listed) == 1):
            sweep.log(experiment, f"epoch {trainer.epoch:,}: {numbers(experiment.history.last_values())}")
        if parameters["plot_metrics"] and experiment.plotted_at <= due:
            to_plot.append(experiment)
    # One experiment's plots after the other's.
    if to_plot and not sweep.plots.waiting:
        oldest = min(to_plot, key=lambda experiment: experiment.plotted_at)
        oldest.plotted_at = validations
        sweep.plots.draw(oldest, pace.took)


def _save_checkpoint(experiment: Experiment, engine: Engine, index: int) -> None:
    """Writes the checkpoint of an experiment whose parameters are at an index of the engine's batch, if asked to."""
    if experiment.parameters["store_checkpoints"] and experiment.epoch >= 0:
        experiment.folder.write_checkpoint(checkpoint_content(experiment, engine, index))


def _finish(ended: Sequence[Experiment], sweep: Sweep) -> None:
    """Writes the results of experiments that ended. After a signal, they are left to a resumed run."""
    for experiment in ended:
        if sweep.stop:
            return
        folder, metrics = experiment.folder, experiment.history.last_values()
        results = experiment.problem.results(experiment, experiment.final_output)
        for name, tensor in results.tensors.items():
            folder.write(name, tensor_bytes(tensor))
        if results.numbers:
            folder.write(results.name, json_bytes(results.numbers))
        reason = _REASONS.get(experiment.stop_reason, experiment.stop_reason.replace("_", " "))
        if experiment.stands_still:
            reason += ", but the loss did not fall in the second half; unless it has converged, give another -lr"
            reason += " or more -epochs"
        sweep.report_end(experiment, reason, metrics | results.extra_metrics)
        finished = experiment, metrics
        if experiment.parameters["plot_metrics"]:
            sweep.plots.draw(experiment, lambda _, finished=finished: sweep.ended.append(finished))
        else:
            sweep.ended.append(finished)
        experiment.release()
