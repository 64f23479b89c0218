"""What waits until files are on the disk. The files of many experiments are synced together."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from common.files import Written, rename, sync_folders
from common.signals import Stop
from common.sweeps.experiment import Experiment

# Minimum time between two syncs: in seconds, and as a multiple of the time that the last sync took.
_SYNC_SECONDS, _SYNC_RATIO = 1.0, 50
# After a signal: seconds between two syncs, and after which no sync begins, because Python needs half a second to exit.
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
        """Calls the actions in order, each after another sync, unless the experiment fails. The first sync writes the
        current content of the folder to the disk, and each later sync the effect of the previous action. For example,
        the first action gives a file its final name, and the second removes an older file.
        """
        self.waiting.append((experiment, folder, actions))

    def rename_after_sync(self, experiment: Experiment, file: Written) -> None:
        """Gives a file its final name when it is on the disk."""
        self.after_syncs(experiment, experiment.folder.path, partial(rename, *file))

    def sync(self) -> None:
        """Waits until all files are on the disk, then calls the waiting actions. An error fails the experiment."""
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
