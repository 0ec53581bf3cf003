"""What torch saved is read for its data, and nothing in it runs."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.pickles import Inert, plain, read_pickle

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
def test_tensors_and_plain_data(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(12.0).view(3, 4)
    content = {
        "half": torch.randn(5, dtype=torch.float16),
        "part": base[1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "whole": torch.tensor(3, dtype=torch.int64),
        "other": OrderedDict(a=[1, 2.5, "x", None, True, (1, {2})], b={"dtype": torch.bfloat16}),
        "size": torch.Size([2, 3]),
    }
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "f.pt")
    for key in ("half", "part", "parameter", "whole"):
        assert torch.equal(found[key], content[key]) and found[key].dtype == content[key].dtype  # type: ignore[call-overload]
    assert found["other"] == content["other"] and found["size"] == (2, 3)


@FORMATS
def test_namespaces_become_dicts(tmp_path: Path, zipped: bool) -> None:
    inner = argparse.Namespace(layers=3, names=["a"])
    torch.save({"args": argparse.Namespace(rate=0.1, inner=inner)}, tmp_path / "f.pt")
    found = read_pickle(tmp_path / "f.pt")["args"]
    assert isinstance(found, Inert) and found.name == "argparse.Namespace"
    assert plain(found) == {"rate": 0.1, "inner": {"layers": 3, "names": ["a"]}}


class Node:
    """As OmegaConf's: what it holds is below `_content` or `_val`."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


def test_nodes_of_omegaconf_become_values(tmp_path: Path) -> None:
    node = Node(
        _content={"a": Node(_val=3, _metadata=Node()), "b": Node(_content=[Node(_val="x")])}, _parent=None
    )
    torch.save({"cfg": node}, tmp_path / "f.pt")
    assert plain(read_pickle(tmp_path / "f.pt")["cfg"]) == {"a": 3, "b": ["x"]}


class Runs:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def attacks(target: Path) -> list[Any]:
    make = f"__import__('os').mkdir({str(target)!r})"
    return [
        Runs(os.mkdir, (str(target),)),
        Runs(eval, (make,)),
        Runs(exec, (make,)),
        Runs(getattr, (Runs(__import__, ("os",)), "mkdir")),
        Runs(pickle.loads, (pickle.dumps(Runs(os.mkdir, (str(target),))),)),
        Runs(torch.load, (str(target),)),
        Runs(torch.hub.load, ("a/b", "c")),
        Runs(argparse.Namespace, (), Runs(os.mkdir, (str(target),))),
        {"deep": [({"x": Runs(os.system, (f"mkdir {target}",))},)]},
    ]


@FORMATS
@pytest.mark.parametrize("number", range(9))
def test_nothing_runs(tmp_path: Path, zipped: bool, number: int) -> None:
    path = tmp_path / "f.pt"
    attack = attacks(tmp_path / "made")[number]
    torch.save({"model": attack}, path, _use_new_zipfile_serialization=zipped)
    read_pickle(path)
    assert not (tmp_path / "made").exists()


def test_the_attacks_are_attacks(tmp_path: Path) -> None:
    for attack in attacks(tmp_path / "made")[:3]:
        pickle.loads(pickle.dumps(attack))
        (tmp_path / "made").rmdir()


@FORMATS
def test_what_is_damaged_is_one_line(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "f.pt"
    torch.save({"a": torch.randn(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[: len(whole) // 2], whole[:10], b"", b"text", b"\x80\x02]q\x00."):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="not a whole file of torch") as said:
            read_pickle(path)
        assert "\n" not in str(said.value)
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pt")
