"""Wall times of all plans, as fresh processes with everything written.

    python -m tests.benchmarks.plans

The kernels are compiled at their first use and stored for the plans that follow.
"""

import os
import subprocess
import sys
import tempfile
import time

import dmf_multiple_experiments_runner
import tc_multiple_experiments_runner
from tests.conftest import ROOT


def main() -> None:
    print("| plan | seconds |\n| --- | --- |")
    total = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for module in (dmf_multiple_experiments_runner, tc_multiple_experiments_runner):
            script = f"{module.__name__}.py"
            for plan in module.PLANS:
                command = [sys.executable, script, "-plan", plan, "-output_dir", f"{directory}/{plan}"]
                begin = time.perf_counter()
                environment = {**os.environ, "XDG_CACHE_HOME": f"{directory}/cache"}
                subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
                seconds = time.perf_counter() - begin
                total += seconds
                print(f"| `{script} -plan {plan}` | {seconds:.1f} |", flush=True)
    print(f"| all | {total:.0f} |")


if __name__ == "__main__":
    main()
