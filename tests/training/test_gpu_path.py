"""Runs the code for GPUs without one, with tensors in CPU memory that report a GPU and refuse what one would refuse."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from common.datasets.matrix_sensing import gaussian_sensing, random_target, sense
from common.sweeps import batches
from common.sweeps.sweep import run_sweep
from common.tensor_files import save_tensors
from tests.conftest import KINDS, folders_in, parse_parameters

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


class OnGpu(Tensor):
    """A tensor that counts as one on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Gpu(TorchFunctionMode):
    """Within this mode, tensors can be made on cuda:0 and moved there. `used` counts the operations on them."""

    used = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_gpu = [isinstance(each, OnGpu) for each in tensors]
        devices = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.device)]
        args, kwargs = tree_map_only(OnGpu, lambda each: each.as_subclass(Tensor), (args, kwargs))
        args, kwargs = tree_map_only(torch.device, lambda each: CPU, (args, kwargs))
        if function is Tensor.device.__get__:
            return CUDA if on_gpu[0] else CPU
        if function is Tensor.is_cuda.__get__:
            return on_gpu[0]
        place = devices[-1] == CUDA if devices else any(on_gpu)
        if function is Tensor.to and not devices:
            place = on_gpu[-1]  # to(other), or to(dtype)
        elif function is Tensor.cpu:
            place = False
        elif function in (Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__):
            place = on_gpu[0]  # copies from the other device, and indices on the CPU, are allowed
        elif function in (Tensor.numpy, Tensor.__array__, torch.from_numpy, Tensor.data_ptr) and any(on_gpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        elif function is not Tensor.to and any(on_gpu):
            others = [each for each, here in zip(tensors, on_gpu, strict=True) if not here and each.dim() > 0]
            if others:
                raise RuntimeError(f"{function.__name__}: expected all tensors to be on the same device")
        self.used += any(on_gpu)
        result = function(*args, **kwargs)
        if function in (Tensor.to, Tensor.cpu) and place != on_gpu[0]:
            result = result.clone()
        return tree_map_only(Tensor, lambda each: each.as_subclass(OnGpu), result) if place else result


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "imitation")
    monkeypatch.setattr(batches, "_GPU_FROM", 0)
    return Gpu()


def run(kind, directory, experiments, gpu=None, **flags):
    """Runs experiments, on the GPU if there is one; returns their folders."""
    flags = {"engine": "torch", "store_checkpoints": True, "output_dir": directory, "disable_gpu": not gpu, **flags}
    parameters = [parse_parameters(kind, **{**flags, **each}) for each in experiments]
    with gpu or nullcontext():
        run_sweep(KINDS[kind][0], parameters)
    return folders_in(directory)


def assert_close(folders, others):
    """Asserts that the checkpoints of runs are equal but for round-off."""
    assert len(folders) == len(others)
    for pair in zip(folders, others, strict=True):
        left, right = (torch.load(next(each.glob("checkpoints/*.pt")), weights_only=True) for each in pair)
        assert left["epoch"] == right["epoch"]
        for name in left["model"]:
            torch.testing.assert_close(left["model"][name], right["model"][name], rtol=1e-4, atol=1e-6)


CASES = {
    "gd": ("dmf", {"save_results": True, "track_singular_values": True}),
    "momentum": ("dmf", {"optimizer": "momentum", "weight_decay": 1e-3, "track_balancedness": True}),
    "adam": ("dmf", {"optimizer": "adam", "track_sharpness": True, "dtype": "float64"}),
    "sensing": ("dmf", {"num_samples": 40, "depth": 2}),
    "adaptive": ("tc", {"use_adaptive_lr": True, "track_component_norms": 3, "num_samples": 60}),
    "plain": ("tc", {"lr": 0.1, "compute_final_tensor_ranks": True, "num_components": 2, "num_samples": 500}),
}


@pytest.mark.parametrize("name", CASES)
def test_runs_agree_with_those_on_the_cpu(name, gpu, tmp_path, frequent_outputs):
    """Experiments end at different epochs, save checkpoints in between, and are continued from these."""
    kind, flags = CASES[name]
    if name == "sensing":
        generator = torch.Generator().manual_seed(0)
        target = random_target(6, 5, 2, False, generator)
        problem = sense(gaussian_sensing(40, 6, 5, 1.0, generator), target)
        flags = {**flags, "dataset_path": tmp_path / "sensing.pt"}
        save_tensors(problem.state_dict(), flags["dataset_path"])
    flags = {"epochs": 60, "validate_every": 10, "save_every_num_val": 1, "init_alpha": 0.1, **flags}
    if kind == "tc":
        flags["init_std"] = flags.pop("init_alpha")
    experiments = [{"random_seed": 0}, {"random_seed": 1, "epochs": 30}]
    on_gpu = run(kind, tmp_path / "gpu", experiments, gpu, **flags)
    assert gpu.used > 500
    assert "cuda:0 (imitation)" in (on_gpu[0] / "run_params.json").read_text()
    assert_close(on_gpu, run(kind, tmp_path / "cpu", experiments, **flags))
    (checkpoint,) = on_gpu[0].glob("checkpoints/*.pt")
    flags |= {"trainer_checkpoint": checkpoint}
    continued = (run(kind, tmp_path / f"continued_{each}", [{}], each, **flags) for each in (gpu, None))
    assert_close(*continued)


@pytest.mark.parametrize(
    "mistake", [lambda x: x + torch.ones(3), lambda x: x.numpy(), lambda x: x.matmul(torch.ones(3))]
)
def test_mistakes_are_found(gpu, mistake):
    with gpu, pytest.raises((RuntimeError, TypeError)):
        mistake(torch.zeros(3, device=CUDA))
