"""Tests of atomic writes and of safe reading of JSON and torch files."""

import json
import os

import pytest
import torch

from common.files import json_bytes, load_json, write_atomically
from common.recorded_runs import read_run
from common.tensor_files import load_dictionary, load_tensors
from tests.conftest import MATRIX
from tests.test_bad_input import ExecutesCode


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(os, "replace", fail)
        write_atomically(path, b"new")
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"new"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_non_finite_numbers_are_null_in_json_files(tmp_path):
    (tmp_path / "x.json").write_bytes(json_bytes({"a": [1.5, float("nan")], "b": {"c": float("inf")}}))
    assert load_json(tmp_path / "x.json") == {"a": [1.5, None], "b": {"c": None}}


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_invalid_json_is_refused(tmp_path, content):
    (tmp_path / "run_params.json").write_text(content)
    with pytest.raises(ValueError, match=r"damaged: run_params.json (is not JSON|does not hold a dictionary)"):
        read_run(tmp_path)


@pytest.mark.parametrize("damage", [{"random_seed": "x"}, {"depth": 0}, {"lr": "1"}])
def test_invalid_run_parameters_are_refused(tmp_path, damage):
    (tmp_path / "run_params.json").write_text(json.dumps({"depth": 3, "lr": 0.1, **damage}))
    with pytest.raises(ValueError, match=f"damaged: {next(iter(damage))} in run_params.json is"):
        read_run(tmp_path)


def test_torch_save_round_trip(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "half": torch.ones(2).bfloat16()}
    content |= {"list": [1.0, 2, True, None, "x"] * 2000, "size": torch.Size([1, 2]), "pair": (1, 2), 5: [2**40, -1]}
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        read = load_dictionary(tmp_path / "x.pt")
        assert read.keys() == content.keys()
        plain = ("list", "size", "pair", 5)
        assert [read[name] for name in plain] == [content[name] for name in plain]
        assert torch.equal(read["model"]["weight"], model.weight)
        assert torch.equal(read["half"], content["half"])


@pytest.mark.parametrize("content", [{"a": ExecutesCode()}, {"a": torch.nn.Linear(2, 2)}])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_content_is_refused_and_not_executed(tmp_path, content, zipped, capsys):
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds more than plain data"):
        load_tensors(tmp_path / "x.pt")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [0, 10, 500, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    (tmp_path / "x.pt").write_bytes(MATRIX.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is damaged"):
        load_dictionary(tmp_path / "x.pt")
