"""Runs the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a separate process."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.training.test_compilation import write_compiler

OPTIONS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
# Sizes above and below the vector width, batch sizes that are not a multiple of it, all optimizers, and
# validations above and below the width.
TRAINING = """
from tests.conftest import ROOT, make_experiment, train

common = {"epochs": 60, "validate_every": 20}
five = {"dataset_path": ROOT / "data/dmf/completion_5x5_w_1_1_0.pt", "num_samples": 24}
order_4 = {"dataset_path": ROOT / "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt", "num_samples": 70}
for kind, settings in [
    ("dmf", {"depth": 3, "lr": 1e5}),
    ("dmf", {"depth": 3, "dtype": "float64", "validate_every": 1, "track_singular_values": True}),
    ("dmf", {"depth": 2, "dtype": "float64", **five}),
    ("dmf", {"depth": 3, "hidden_dim": 7, "optimizer": "momentum", "weight_decay": 0.1, **five}),
    ("dmf", {"depth": 4, "hidden_dim": 1, "optimizer": "momentum"}),
    ("tc", {"num_samples": 70, "use_adaptive_lr": True}),
    ("tc", {"num_samples": 300, "use_adaptive_lr": True, "num_components": 33}),
    ("tc", {"num_samples": 300, "optimizer": "momentum", "weight_decay": 0.1, "num_components": 33}),
    ("tc", {"dtype": "float64", **order_4}),
    ("tc", {"dtype": "float64", **order_4, "num_samples": 4000, "num_components": 11}),
]:
    for count in (17,) if kind == "dmf" else (3,):
        train([make_experiment(kind, random_seed=seed, **{**common, **settings}) for seed in range(count)], native=True)
print("trained")
"""


def test_kernels_pass_sanitizers(tmp_path):
    gcc = shutil.which("gcc")
    library = (
        gcc and subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    )
    if not os.path.isabs(library):
        pytest.skip("needs gcc with AddressSanitizer")
    environment = {
        **os.environ,
        "CC": write_compiler(tmp_path / "cc", f'exec {gcc} {OPTIONS} "$@"\n'),
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-c", TRAINING]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
