"""Runs the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a separate process."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

OPTIONS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
# Sizes and batch sizes that are not multiples of the vector width, all optimizers, diverging experiments, and more and
# fewer validations than the width.
TRAINING = """
from tests.conftest import ROOT, make_experiment, train

five = {"dataset_path": ROOT / "data/dmf/completion_5x5_w_1_1_0.pt", "num_samples": 24}
order_4 = {"dataset_path": ROOT / "data/tc/tensor_rank_1_fro_1_order_4_dim_8.pt", "num_samples": 70}
for kind, settings in [
    ("dmf", {"depth": 3, "lr": 1e5, "dtype": "float64", "validate_every": 1, "track_singular_values": True}),
    ("dmf", {"depth": 3, "hidden_dim": 7, "optimizer": "momentum", "weight_decay": 0.1, **five}),
    ("tc", {"num_samples": 70, "use_adaptive_lr": True, "num_components": 33}),
    ("tc", {"num_samples": 300, "optimizer": "momentum", "weight_decay": 0.1, "num_components": 33}),
    ("tc", {"dtype": "float64", "num_components": 11, **order_4}),
]:
    seeds = range(17 if kind == "dmf" else 3)
    given = {"epochs": 60, "validate_every": 20, **settings}
    train([make_experiment(kind, random_seed=seed, **given) for seed in seeds], native=True)
print("trained")
"""


def test_kernels_pass_sanitizers(tmp_path):
    gcc, compiler = shutil.which("gcc"), tmp_path / "cc"
    found = gcc and subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True)
    library = found.stdout.strip() if found else ""
    if not os.path.isabs(library):
        pytest.skip("needs gcc with AddressSanitizer")
    compiler.write_text(f'#!/bin/sh\nexec {gcc} {OPTIONS} "$@" -O0\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    environment |= {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", TRAINING]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
