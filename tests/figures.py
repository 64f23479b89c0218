"""Makes the pictures in example_plots/ again, with the commands of example_plots/README.md.

    python -m tests.figures [NAME ...]

Prints the time of each command. With names of plans, runs only the commands that name one of them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.pages import commands


def main() -> None:
    names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "data").symlink_to(ROOT / "data")
        for command in commands(ROOT / "example_plots/README.md"):
            if names and not any(name in command for name in names):
                continue
            _, script, *flags = shlex.split(command)
            begin = time.perf_counter()
            environment = {**os.environ, "MPLBACKEND": "agg"}
            line = [sys.executable, str(ROOT / script), *flags]
            subprocess.run(line, cwd=directory, env=environment, stdout=subprocess.DEVNULL, check=True)
            print(f"{time.perf_counter() - begin:7.1f} s  {command}", flush=True)
            for picture in directory.glob("outputs/figures/*.png"):
                shutil.copyfile(picture, ROOT / "example_plots" / picture.name)


if __name__ == "__main__":
    main()
