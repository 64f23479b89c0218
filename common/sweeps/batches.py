"""Batches of experiments that are trained together, with their devices and engines."""

from collections.abc import Iterable, Sequence

import torch

from common.cli import flag_error, warn_once
from common.sweeps.experiment import Experiment
from common.sweeps.processes import World
from common.training.compilation import NativeUnavailable
from common.training.native_engine import Kernel, NotNative, native_kernel
from common.training.threads import NUM_THREADS

# Multiplications in one step of a batch from which a GPU is faster: about what two CPU cores compute while a dozen GPU
# kernels are launched.
_GPU_FROM = 10**7
# Multiplications in one step of an experiment from which several threads are much faster than one (torch engine): two
# take two thirds of the time then. Below, threads that wait for a busy core would cost more.
_THREADS_FROM = 15 * 10**6
# The most bytes that the experiments of one batch may need in training, and the most that are assumed for one history:
# longer histories are rare.
_MOST_BATCH_BYTES, _MOST_HISTORY_BYTES = 2**30, 2**26

Batch = tuple[list[Experiment], torch.device, Kernel | None]


def make_batches(experiments: Iterable[Experiment], world: World) -> list[Batch]:
    """Groups experiments into batches that fit into memory, with their devices and kernels. Raises UserError if one is
    not available.
    """
    grouped: dict[tuple, list[Experiment]] = {}
    for experiment in experiments:
        same = (experiment.parameters[name] for name in ("dtype", "engine", "validate_every", "disable_gpu", "gpu_id"))
        key = (experiment.stop_reason is not None, *experiment.problem.batch_key, experiment.epoch, *same)
        grouped.setdefault(key, []).append(experiment)
    batches = []
    for group in grouped.values():
        device = _device(group, world)
        kernel, problem, every = _kernel(group[0], device), group[0].problem, group[0].parameters["validate_every"]
        num_records = max(each.keeps_history * (each.parameters["epochs"] // every + 1) for each in group)
        history_bytes = min(num_records * (problem.num_metrics + 2) * 8, _MOST_HISTORY_BYTES)
        size = max(1, _MOST_BATCH_BYTES // (problem.working_size * group[0].factors[0].element_size() + history_bytes))
        batches += [(group[begin : begin + size], device, kernel) for begin in range(0, len(group), size)]
    return batches


def threads_for(experiment: Experiment) -> int:
    """Returns the number of PyTorch's threads for a batch of such experiments. An experiment's bits may depend on it,
    so it depends on the experiment alone.
    """
    return 1 if experiment.problem.multiplications < _THREADS_FROM else NUM_THREADS


def _device(batch: Sequence[Experiment], world: World) -> torch.device:
    """Returns a GPU if there is one that may be used and is faster for steps of this size, else the CPU. Processes that
    were started together on a machine use its GPUs in turn, from -gpu_id on.
    """
    parameters = batch[0].parameters
    if parameters["disable_gpu"] or parameters["engine"] == "native":
        return torch.device("cpu")
    gpu_id = parameters["gpu_id"]
    if not torch.cuda.is_available():
        if gpu_id:
            warn_once(f"-gpu_id {gpu_id}: there is no GPU that PyTorch can use; the CPU is used")
        return torch.device("cpu")
    if gpu_id >= (number := torch.cuda.device_count()):
        raise flag_error("gpu_id", gpu_id, f"there are {number} GPUs, counted from 0; give one of them or -disable_gpu")
    if sum(experiment.problem.multiplications for experiment in batch) < _GPU_FROM:
        return torch.device("cpu")
    return torch.device("cuda", (gpu_id + world.local_rank) % number)


def _kernel(experiment: Experiment, device: torch.device) -> Kernel | None:
    """Returns the native kernel for an experiment and its batch, or None if the torch engine runs them."""
    choice, problem = experiment.parameters["engine"], experiment.problem
    if choice == "torch" or device.type != "cpu":
        return None
    try:
        if not problem.observes_entries:
            raise NotNative("needs observed entries, not other sensing matrices")
        shapes, dtype = problem.factor_shapes, getattr(torch, experiment.parameters["dtype"])
        num_observed, _ = problem.num_observations
        return native_kernel(problem.model, shapes, dtype, problem.optimizer, num_observed, problem.decays)
    except NativeUnavailable as error:
        if choice == "native":
            raise flag_error("engine", choice, f"{error}; give auto or torch") from None
        if not isinstance(error, NotNative):
            warn_once(f"the native engine {error}; the torch engine is used")
        return None
