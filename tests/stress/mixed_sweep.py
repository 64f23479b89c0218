"""Sweep for the kill test that mixes 2x2 and 5x5, float32 and float64, both engines, optimizers with state, and
diverging experiments, some of which record metrics of the factors.
"""

import dmf_multiple_experiments_runner as runner
from common.cli import run_script
from common.sweeps.plans import Plan, combinations

BASE = {"random_seed": 0, "enforce_pos_det": True, "epochs": 6000, "validate_every": 50, "lr": 5e-3, "init_alpha": 0.05}
BASE |= {"save_every_num_val": 5, "store_checkpoints": True, "save_results": True, "plot_metrics": True}
BASE |= {"file_log": True, "track_singular_values": True}
DTYPES = {"dtype": ["float32", "float64"]}
STATEFUL = {"optimizer": ["momentum", "adam"], "weight_decay": [0.0, 0.1]}
TWO, FIVE = "data/dmf/completion_2x2_w_1_1_0.pt", "data/dmf/completion_5x5_w_1_1_0.pt"
runner.DEFAULT = Plan(
    "",
    [
        *combinations({**BASE, "dataset_path": FIVE, "num_samples": 24}, DTYPES),
        *combinations({**BASE, "engine": "torch", "epochs": 3000, "track_sharpness": True}, DTYPES),
        *combinations({**BASE, "track_balancedness": True}, STATEFUL),
        *combinations({**BASE, "lr": 1e5}, {"dataset_path": [TWO, FIVE], "store_checkpoints": [False, True]}),
    ],
)

if __name__ == "__main__":
    run_script(runner.main)
