"""Tests of atomic writes and of safe reading of JSON and torch files."""

import gc
import json
import os
import pickle
import signal
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from common import tensor_files
from common.files import json_bytes, load_json, open_regular, remove_temporary_files, write_atomically
from common.recorded_runs import compared, read_run
from common.signals import Interrupted, signals_raised
from common.tensor_files import load_dictionary, load_tensors
from tests.conftest import MATRIX


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_atomically(path, b"old")

    def write_partially(self, content):
        self.open("wb").write(content[:1])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(type(path), "write_bytes", write_partially)
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new", overwrite=False)
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_remove_temporary_files(tmp_path):
    names = [".x-0a1b2c3d.json", ".run_params-ab_c1234.json", "x.json", ".hidden", "my-notes12.txt"]
    for name in names:
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path, ".pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    remove_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_non_finite_numbers_are_null_in_json_files(tmp_path):
    (tmp_path / "x.json").write_bytes(json_bytes({"a": [1.5, float("nan")], "b": {"c": float("inf")}}))
    assert load_json(tmp_path / "x.json") == {"a": [1.5, None], "b": {"c": None}}


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1', "[" * 100_000, f"{'[' * 1000}{']' * 1000}", '"x"'])
def test_invalid_json_is_refused(tmp_path, content):
    (tmp_path / "run_params.json").write_text(content)
    with pytest.raises(ValueError, match=r"damaged: run_params.json (is not JSON|does not hold a dictionary)"):
        read_run(tmp_path)


def test_deep_or_large_json_is_refused(tmp_path):
    """Many empty dictionaries use much memory, and deep nesting exceeds the recursion limit of Python."""
    deep = {}
    for _ in range(100):
        deep = {"before": deep}
    for content in (json.dumps(deep), '{"a": [' + ",".join(["{}"] * 400_000) + "]}"):
        (tmp_path / "run_params.json").write_text(content)
        with pytest.raises(ValueError, match=r"damaged: run_params.json"):
            read_run(tmp_path)
    for levels, deep in ((19, False), (20, True)):
        (tmp_path / "x.json").write_text('{"a": ' * levels + "1" + "}" * levels)
        with pytest.raises(ValueError, match="damaged") if deep else nullcontext():
            load_json(tmp_path / "x.json")


def test_null_in_an_identity_counts_as_missing(tmp_path):
    identity = dict.fromkeys(("run", "outputs", "inputs", "seed", "occurrence", "origin"))
    content = {"depth": 3, "lr": 0.1, "provenance": {"identity": identity}}
    (tmp_path / "run_params.json").write_text(json.dumps(content))
    run = read_run(tmp_path)
    assert (run.identity, run.values, compared([run])) == ({}, {"depth": 3, "lr": 0.1}, [{"depth": 3, "lr": 0.1}])


@pytest.mark.parametrize(
    "damage", [{"random_seed": "x"}, {"random_seed": -2}, {"depth": 0}, {"hidden_dim": -1}, {"lr": "1"}]
)
def test_invalid_run_parameters_are_refused(tmp_path, damage):
    (tmp_path / "run_params.json").write_text(json.dumps({"depth": 3, "lr": 0.1, **damage}))
    with pytest.raises(ValueError, match=f"damaged: {next(iter(damage))} in run_params.json is"):
        read_run(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_non_regular_file_is_refused(tmp_path, kind):
    """Reading a pipe or /dev/zero would never end."""
    path = tmp_path / "run_params.json"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    for read in (open_regular, load_tensors, load_json):
        with pytest.raises((ValueError, OSError)):
            read(path)
    with pytest.raises(ValueError, match=r"run_params\.json"):
        read_run(tmp_path)


def test_torch_save_round_trip(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "half": torch.ones(2).bfloat16()}
    numbers = [2**40, -(2**40), 2**63 - 1, -(2**63), -1, 70_000, float("inf")]
    content |= {"list": [1.0, 2, True, None, "x"] * 2000, "size": torch.Size([1, 2]), "pair": (1, 2), 5: numbers}
    content["parameter"] = torch.nn.Parameter(torch.ones(3))
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        read = load_dictionary(tmp_path / "x.pt")
        assert read.keys() == content.keys()
        plain = ("list", "size", "pair", 5)
        assert [read[name] for name in plain] == [content[name] for name in plain]
        assert gc.isenabled()
        assert torch.equal(read["model"]["weight"], model.weight)
        assert torch.equal(read["half"], content["half"])


def test_negated_tensor_is_refused(tmp_path):
    """The file has the numbers before the negation."""
    torch.save(torch._neg_view(torch.ones(2)), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more than plain data"):
        load_tensors(tmp_path / "x.pt")


def test_signal_while_reading_is_no_damage(tmp_path, monkeypatch):
    torch.save(1, tmp_path / "x.pt")
    monkeypatch.setattr(tensor_files, "_read_zip", lambda file: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted), signals_raised():
        load_tensors(tmp_path / "x.pt")


def test_long_lists_are_read(tmp_path):
    """The original code stores two lists with one entry per epoch."""
    content = {"epoch_values": [0.5] * 10**6, "epochs_with_values": list(range(10**6))}
    torch.save(content, tmp_path / "x.pt")
    assert load_dictionary(tmp_path / "x.pt") == content


class ExecutesCode:
    """Object whose unpickling calls print."""

    def __reduce__(self):
        return print, ("executed",)


MALICIOUS = {
    "code": {"a": ExecutesCode()},
    # All keys have hash 0.
    "colliding keys": {k * (2**61 - 1): k for k in range(20_000)},
    "colliding tuples": {(-1, -2, k % 2): k for k in range(4)},
    "expanded": {"a": torch.zeros(1).expand(10**11)},
    "sparse": {"a": torch.zeros(3).to_sparse()},
    "meta": {"a": torch.empty(10**9, device="meta")},
    "module": {"a": torch.nn.Linear(2, 2)},
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_content_is_refused(tmp_path, name, zipped):
    torch.save(MALICIOUS[name], tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds more than plain data"):
        load_tensors(tmp_path / "x.pt")


def write_zip(path, pickled, members=None, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **(members or {})}.items():
            archive.writestr(f"x/{name}", content)


def write_legacy(path, pickled, keys, numbers):
    torch.save(None, path, _use_new_zipfile_serialization=False)
    begin = path.read_bytes().partition(b"}q")[0][:-2]  # the magic number and the version
    path.write_bytes(begin + pickle.dumps({"little_endian": True}, 2) + pickled + pickle.dumps(keys, 2) + numbers)


# Pickles of a few hundred bytes that would take gigabytes or hang, without the opcode of the protocol.
HUGE = b"\x8a\x05\x00\x00\x00\x00\x01"  # 2**32
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%btQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%bK\0%b%b\x89ccollections\nOrderedDict\n)RtR."
HAND_MADE = {
    "call": b"cbuiltins\nbytearray\n" + HUGE + b"\x85R.",
    "global on two lines": b"ctorch\nSize bytearray\n" + HUGE + b"\x85R.",
    "global on the stack": b"X\x08\0\0\0builtinsX\x09\0\0\0bytearray\x93" + HUGE + b"\x85R.",
    "Counter": b"ccollections\nCounter\n](X\x01\0\0\0aX\x01\0\0\0be\x85R.",
    "OrderedDict of a list": b"ccollections\nOrderedDict\n](K\1K\1\x86e\x85R.",
    "tuple that doubles 40 times as key": b"}K\1" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40)) + b"K\2s.",
    "key without value": b"}(K\1K\2K\3u.",
    "float as key": b"}G" + bytes(8) + b"K\1s.",
    "integer of 9 bytes as key": b"}\x8a\x09" + bytes(8) + b"\1K\1s.",
    "list of another value": b"}(K\1K\2e.",
    "decimal integer": b"I" + b"9" * 10_000 + b"\n.",
    "empty containers": b"](" + b"]" * 10_000 + b"e.",
    "calls": b"ccollections\nOrderedDict\nq\0(" + b"h\0)R" * 1001 + b"t.",
    "storage without numbers": TENSOR % (STORAGE % HUGE, b"K\1\x85", b"K\1\x85"),
    "storage of negative length": TENSOR % (STORAGE % b"J\xff\xff\xff\xff", b"K\1\x85", b"K\1\x85"),
}


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("zipped", [True, False])
def test_hand_made_pickle_is_refused(tmp_path, monkeypatch, name, zipped):
    monkeypatch.setattr(tensor_files, "_MOST_OPCODES", 10_000)
    monkeypatch.setattr(tensor_files, "_MOST_CALLS", 1000)
    pickled, path = b"\x80\x02" + HAND_MADE[name], tmp_path / "x.pt"
    if zipped:
        write_zip(path, pickled)
    else:
        write_legacy(path, pickled, ["0"], bytes(20))
    with pytest.raises(ValueError, match="holds more than plain data"):
        load_tensors(path)


def storage(kind, num, view=b""):
    """Returns what pickles hold of the storage "0": its type, the number of its numbers and, in old files, a view."""
    return b"(X\7\0\0\0storagectorch\n%bStorage\nX\1\0\0\x000X\3\0\0\0cpuK%c%btQ" % (kind, num, view)


@pytest.mark.parametrize("kind, num", [(b"Float", 1), (b"Int", 1), (b"Float", 2)])
def test_storage_of_several_tensors_has_one_type_and_length(tmp_path, kind, num):
    pickled = b"\x80\2%b%b\x86." % (storage(b"Float", 1), storage(kind, num))
    write_zip(tmp_path / "x.pt", pickled, {"data/0": np.float32(3).tobytes()})
    if (kind, num) == (b"Float", 1):
        assert load_tensors(tmp_path / "x.pt") == (3, 3)
        return
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(tmp_path / "x.pt")


def test_other_byte_order_is_refused(tmp_path):
    write_zip(tmp_path / "x.pt", b"\x80\2N.", {"byteorder": b"little"})
    assert load_tensors(tmp_path / "x.pt") is None
    write_zip(tmp_path / "x.pt", b"\x80\2N.", {"byteorder": b"big"})
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(tmp_path / "x.pt")


def test_legacy_storages_need_their_keys_and_have_no_views(tmp_path):
    numbers = (1).to_bytes(8, "little") + np.float32(3).tobytes()
    write_legacy(tmp_path / "x.pt", b"\x80\2%b." % storage(b"Float", 1, b"N"), ["0"], numbers)
    assert load_tensors(tmp_path / "x.pt").tolist() == [3]
    for keys, view in (([], b"N"), (["1"], b"N"), (["0", "0"], b"N"), (["0"], b"X\1\0\0\x001K\0K\1\x87")):
        write_legacy(tmp_path / "x.pt", b"\x80\2%b." % storage(b"Float", 1, view), keys, numbers)
        with pytest.raises(ValueError, match="is damaged"):
            load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("shape, stride", [((4,), (1,)), ((3,), (2,)), ((-1,), (1,)), ((2, 2), (1, 1)), ((), ())])
@pytest.mark.parametrize("offset", [0, 1, -1])
def test_tensor_outside_of_its_storage_is_refused(tmp_path, shape, stride, offset):
    """Of the storage's three numbers; the last shape is fine."""
    tensor = torch.zeros(3).as_strided((), (), max(offset, 0))
    torch.save(tensor, tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as good, zipfile.ZipFile(tmp_path / "x.pt", "w") as changed:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("data.pkl"):
                numbers = [pickle.dumps(each, 2)[2:-1] for each in (offset, shape, stride)]
                begin, end = content.split(b"QK%c))" % max(offset, 0))
                content = begin + b"Q" + b"".join(numbers) + end
            changed.writestr(name, content)
    if shape == () and offset >= 0:
        assert load_tensors(tmp_path / "x.pt").shape == ()
        return
    with pytest.raises(ValueError, match="holds more than plain data"):
        load_tensors(tmp_path / "x.pt")


def test_legacy_storages_need_their_numbers(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes()
    for cut in (1, 4, 399, 400, 408):
        (tmp_path / "x.pt").write_bytes(whole[:-cut])
        with pytest.raises(ValueError, match="is damaged"):
            load_tensors(tmp_path / "x.pt")


def test_members_with_the_same_bytes_are_refused(tmp_path):
    """In newer versions of zipfile, an extra field may rename a member: thousands may share their bytes."""
    torch.save(torch.ones(1000), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        (member,) = (each for each in archive.filelist if each.filename.endswith("data/0"))
        archive.filelist += [member] * 2
        archive.writestr("x/other", b"")  # writes the list of members
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(tmp_path / "x.pt")


def test_concatenated_zip_archives(tmp_path):
    """The zipfile module and torch may find different member lists; only checked members may be loaded."""
    for name, value in (("first", ExecutesCode()), ("last", torch.ones(2))):
        torch.save({"a": value}, tmp_path / name)
    (tmp_path / "x.pt").write_bytes((tmp_path / "first").read_bytes() + (tmp_path / "last").read_bytes())
    assert load_tensors(tmp_path / "x.pt")["a"].tolist() == [1, 1]


def test_compressed_zip_members_are_refused(tmp_path):
    """Compressed members may expand to gigabytes."""
    write_zip(tmp_path / "x.pt", b"\x80\x02N." + bytes(10**6), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("begin", [b"", b"\x80\x02"])
def test_large_files_of_other_formats_are_not_read(tmp_path, begin):
    with open(tmp_path / "x.pt", "wb") as file:
        file.write(begin)
        file.truncate(2**40)  # takes no space on the disk
    with pytest.raises(ValueError, match="is not a torch"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("cut", [0, 3, 10, 100, 500, -30, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    (tmp_path / "x.pt").write_bytes(MATRIX.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is damaged"):
        load_dictionary(tmp_path / "x.pt")


def test_file_without_dictionary_is_refused(tmp_path):
    torch.save([1, np.float64(2).item()], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a list; give a file that holds a dictionary"):
        load_dictionary(tmp_path / "x.pt")
