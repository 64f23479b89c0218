"""What a crash of the machine may leave: nothing that is relied on before it is on the disk."""

import errno
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common import files
from common.cli import RunFailed
from common.files import sync_folders
from common.recorded_runs import newest_checkpoint
from common.signals import Stop
from common.sweeps import disk
from common.sweeps.disk import DiskQueue
from common.sweeps.sweep import run_sweep
from common.training import native_engine
from tests.conftest import KINDS, runs_by_number
from tests.stress.kills import differences, read_outputs
from tests.sweeps.test_resume import DMF, parameter_list


@pytest.fixture
def frequent_checkpoints(monkeypatch):
    """Lets a checkpoint be saved at each validation if outputs are not throttled."""
    monkeypatch.setattr(native_engine, "_MAX_MULTIPLICATIONS_PER_CHUNK", 0)


def three_experiments(output_dir, kind="dmf", plots=False):
    """Returns three experiments with four validations, and perhaps plots of the last."""
    given = [{"epochs": 400, "validate_every": 100, "save_every_num_val": 1, "lr": lr} for lr in (1e-3, 2e-3, 3e-3)]
    given[2]["plot_metrics"] = plots
    return parameter_list(output_dir, *given, kind=kind)


def test_number_of_syncs(tmp_path, monkeypatch):
    calls, fsync, sync_file_system = [], os.fsync, files._sync_file_system
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(fsync(handle)))
    monkeypatch.setattr(files, "_sync_file_system", lambda *given: calls.append(0) or sync_file_system(*given))
    without = {"store_checkpoints": False, "file_log": False, "epochs": 100}
    run_sweep(DMF, parameter_list(tmp_path, *({**without, "random_seed": seed} for seed in range(200))))
    assert (
        len([run for runs in runs_by_number(tmp_path).values() for run in runs if run[0]["status"]["finished"]]) == 200
    )
    assert len(calls) < 100  # five, and one for each second


@pytest.mark.parametrize("seconds", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_writes_and_syncs(tmp_path, monkeypatch, frequent_checkpoints, kind, seconds):
    """Checks for each renamed or removed file that what it relies on was there, with this content, at the last sync."""
    durable, events = {}, []
    replace, unlink, sync = os.replace, Path.unlink, disk.sync_folders

    def content(path):
        return {each: each.read_bytes() for each in path.rglob("*") if each.is_file() and each.suffix != ".log"}

    def record_sync(folders):
        errors = sync(folders)
        durable.clear()
        durable.update(content(tmp_path))
        return errors

    def check_replace(source, target):
        if ".making" not in str(target) and target.is_relative_to(tmp_path):
            check(source, target)
        replace(source, target)

    def check(source, target):
        parts = content(source) if source.is_dir() else {source: source.read_bytes()}
        assert parts
        assert parts.items() <= durable.items()
        if target.name == "run_params.json" and json.loads(source.read_text())["status"]["finished"]:
            others = {path: value for path, value in content(target.parent).items() if path.name[0] != "."}
            assert len(others) > 2
            assert others.items() <= durable.items()
            events.append("finished")

    def check_unlink(path, missing_ok=False):
        if path.parent.name == "checkpoints" and path.name[0] != "." and path.exists():
            assert newest_checkpoint(path.parents[1]) in durable
            assert path != newest_checkpoint(path.parents[1])
            events.append("removed")
        unlink(path, missing_ok)

    monkeypatch.setattr(disk, "_SYNC_SECONDS", seconds)
    monkeypatch.setattr(disk, "sync_folders", record_sync)
    monkeypatch.setattr(os, "replace", check_replace)
    monkeypatch.setattr(Path, "unlink", check_unlink)
    run_sweep(KINDS[kind][0], three_experiments(tmp_path, kind, plots=True), output_share=np.inf)
    assert events.count("finished") == 3
    assert events.count("removed") >= 6
    # At the end, all is on the disk.
    assert {path: value for path, value in content(tmp_path).items() if path.name[0] != "."}.items() <= durable.items()
    assert all(runs[0][0]["status"]["finished"] for runs in runs_by_number(tmp_path).values())


def test_failed_sync_fails_experiments_whose_files_may_be_lost(tmp_path, monkeypatch, capsys, frequent_checkpoints):
    """Fails each sync of the sweep in turn, and checks that -resume completes the sweep."""
    monkeypatch.setattr(disk, "_SYNC_SECONDS", 0)
    calls = []

    def fail_sync(number):
        def failing(folders):
            calls.append(list(folders))
            if len(calls) == number:
                return {folder: OSError(errno.EIO, "Input/output error", str(folder)) for folder in calls[-1]}
            return sync_folders(calls[-1])

        calls.clear()
        return failing

    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync_folders", fail_sync(-1))
        run_sweep(DMF, three_experiments(tmp_path / "whole"), output_share=np.inf)
    expected, number_of_syncs = read_outputs(tmp_path / "whole"), len(calls)
    assert number_of_syncs > 6
    for number in range(1, number_of_syncs + 1):
        path = tmp_path / str(number)
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(disk, "sync_folders", fail_sync(number))
            try:
                run_sweep(DMF, three_experiments(path), output_share=np.inf)
                failed = 0
            except RunFailed as error:
                failed = int(str(error).split()[0])
                assert "Input/output error" in str(error)
                assert str(error).endswith("-resume")
        assert failed
        assert capsys.readouterr().out.count(" failed: ") == failed
        statuses = [runs[0][0]["status"] for runs in runs_by_number(path).values()]
        assert sum(status["finished"] for status in statuses) == 3 - failed
        run_sweep(DMF, three_experiments(path), resume=True, output_share=np.inf)
        assert differences(expected, read_outputs(path)) == []


def test_every_file_is_synced_without_syncfs(tmp_path, monkeypatch):
    """Without syncfs, or after it failed, each file is synced, and only folders with an error of their own fail."""
    folders = [tmp_path / name for name in ("a", "b", "gone")]
    for folder in folders[:2]:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/x.pt").touch()
    synced, fsync = [], os.fsync

    def record(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append(path)
        if path == folders[1] / "checkpoints/x.pt":
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    for available in (True, False):
        synced.clear()
        monkeypatch.setattr(files, "_file_systems", {})
        monkeypatch.setattr(files, "_HAS_SYNCFS", available)
        monkeypatch.setattr(files.ctypes, "CDLL", lambda _: SimpleNamespace(syncfs=lambda handle: -1))
        for _ in range(2):  # the second time, syncfs would not report the error
            errors = sync_folders(folders)
            assert {folder.name: error.errno for folder, error in errors.items()} == {
                "b": errno.EIO,
                "gone": errno.ENOENT,
            }
            monkeypatch.setattr(files.ctypes, "CDLL", lambda _: SimpleNamespace(syncfs=lambda handle: 0))
        assert {*folders[0].rglob("*"), folders[0], tmp_path} <= set(synced)


def test_slow_syncs_are_rarer(tmp_path):
    queue, synced = DiskQueue(Stop(), nullcontext), []
    for seconds_ago, expected in ((500, []), (700, [1])):
        queue.waiting = [(None, tmp_path, [lambda: synced.append(1)])]
        queue.last_sync, queue.last_sync_seconds = time.monotonic() - seconds_ago, 12
        queue.sync_if_due()
        assert synced == expected
