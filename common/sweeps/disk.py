"""What waits until files are on the disk. The files of many experiments are synced together."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from common.files import Written, rename, sync_folders
from common.signals import Stop
from common.sweeps.experiment import Experiment

# Between two waits for the disk, at least so many seconds pass, and at least so many times the last wait.
_SYNC_SECONDS, _SYNC_RATIO = 1.0, 50
# After a signal, so many seconds pass between two waits, which end within so many: Python needs half a second to exit.
_SYNC_SECONDS_AFTER_SIGNAL, _MOST_SYNC_SECONDS = 0.4, 1.4


class DiskQueue:
    """Actions that are done when the files of an experiment are on the disk. `guard` is a context in which an error
    ends the experiment.
    """

    def __init__(self, stop: Stop, guard: Callable[[Experiment], AbstractContextManager]):
        self._stop, self._guard = stop, guard
        # Experiments, their folders, and what is to be done after the next syncs
        self.waiting: list[tuple[Experiment, Path, Sequence[Callable[[], None]]]] = []
        self.last_sync, self.last_sync_seconds = time.monotonic(), 0.0  # when it ended, and how long it took

    def after_syncs(self, experiment: Experiment, folder: Path, *actions: Callable[[], None]) -> None:
        """Does each action after a sync of its own, in turn, unless the experiment fails: the first when everything
        that is now in the experiment's folder is on the disk, the second when the effect of the first is, and so on.
        The first gives a file its final name, for example, and the second removes an older file.
        """
        self.waiting.append((experiment, folder, actions))

    def rename_after_sync(self, experiment: Experiment, file: Written) -> None:
        """Gives a file its final name when it is on the disk."""
        self.after_syncs(experiment, experiment.folder.path, partial(rename, *file))

    def sync(self) -> None:
        """Waits until all files are on the disk, then does what waits for that. An error fails its experiments."""
        waiting, self.waiting, begin = self.waiting, [], time.monotonic()
        errors = sync_folders(dict.fromkeys(folder for _, folder, _ in waiting))
        self.last_sync = time.monotonic()
        self.last_sync_seconds = self.last_sync - begin
        for experiment, folder, (action, *later) in waiting:
            with self._guard(experiment):
                if folder in errors:
                    raise errors[folder]
                action()
                if later and not experiment.failed:
                    self.waiting.append((experiment, folder, later))

    def sync_if_due(self) -> None:
        """Calls `sync` if something waits for it, and the last one is long enough ago."""
        least = _SYNC_SECONDS_AFTER_SIGNAL if self._stop else max(_SYNC_SECONDS, _SYNC_RATIO * self.last_sync_seconds)
        if self.waiting and time.monotonic() - self.last_sync >= least:
            self.sync()

    def sync_all(self) -> None:
        """Calls `sync` until nothing waits for it. After a signal, what takes too long is left to a resumed run."""
        while self.waiting and self.seconds_after_signal() <= _MOST_SYNC_SECONDS:
            self.sync()

    def seconds_after_signal(self) -> float:
        """Returns the seconds from a signal until what is written now will be on the disk; 0 if there was none."""
        return self._stop.seconds() + self.last_sync_seconds if self._stop else 0.0
