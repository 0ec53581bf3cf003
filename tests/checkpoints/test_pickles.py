"""What torch saved is read for its data, and nothing in it runs."""

from __future__ import annotations

import argparse
import copyreg
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.checkpoints.torch_files.plain import plain
from speech_ssl.checkpoints.torch_files.unpickling import Inert

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
def test_tensors_and_plain_data(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(12.0).view(3, 4)
    noted, tuned = torch.randn(4), torch.nn.Parameter(torch.randn(4))
    noted.note, tuned.note = "x", "y"  # type: ignore[attr-defined]
    content: dict[str, Any] = {
        "empty": torch.empty(0, 3),
        "row": torch.ones(1).expand(3),
        "float8": torch.randn(4).to(torch.float8_e4m3fn).view(torch.uint8),
        "unsigned": torch.arange(3).to(torch.uint16),
        "noted": noted,
        "tuned": tuned,
        "half": torch.randn(5, dtype=torch.float16),
        "part": base[1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "whole": torch.tensor(3, dtype=torch.int64),
        "other": OrderedDict(a=[1, 2.5, "x", None, True, (1, {2})], b={"dtype": torch.bfloat16}),
        "size": torch.Size([2, 3]),
    }
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "f.pt")
    for key in list(content)[:10]:
        assert torch.equal(found[key], content[key]) and found[key].dtype == content[key].dtype
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


class MakesWhenNew:
    def __new__(cls, path: str) -> MakesWhenNew:
        Path(path).mkdir()
        return super().__new__(cls)


class MakesWhenSet:
    def __setstate__(self, path: str) -> None:
        Path(path).mkdir()

    def __setitem__(self, path: str, _: int) -> None:
        Path(path).mkdir()

    def append(self, path: str) -> None:
        Path(path).mkdir()


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
        Runs(copyreg.__newobj_ex__, (MakesWhenNew, (), {"path": str(target)})),  # type: ignore[attr-defined]
        Runs(MakesWhenSet, (), str(target)),
        Runs(MakesWhenSet, (), None, iter([str(target)])),
        Runs(MakesWhenSet, (), None, None, iter([(str(target), 1)])),
        Runs(argparse.Namespace, (), Runs(os.mkdir, (str(target),))),
        {"deep": [({"x": Runs(os.system, (f"mkdir {target}",))},)]},
    ]


@FORMATS
@pytest.mark.parametrize("number", range(13))
def test_nothing_runs(tmp_path: Path, zipped: bool, number: int) -> None:
    path = tmp_path / "f.pt"
    attack = attacks(tmp_path / "made")[number]
    torch.save({"model": attack}, path, _use_new_zipfile_serialization=zipped, pickle_protocol=4)
    assert read_pickle(path)
    assert not (tmp_path / "made").exists()


class Makes(torch.nn.Module):
    """Its program makes a file when it is loaded, for `torch.load` runs a program that looks like weights."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.training = path, False

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        if torch.from_file(self.path, True, 4, dtype=torch.float32).fill_(1.0).sum() < 0:
            self.path = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_programs_of_torchscript_do_not_run(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "f.pt"
    torch.jit.script(Makes(str(made))).save(str(path))  # type: ignore[no-untyped-call]
    torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    assert made.exists()  # it is an attack
    made.unlink()
    with pytest.raises(ArtifactError, match="TorchScript"):
        read_pickle(path)
    assert not made.exists()


def old_file(program: bytes) -> bytes:
    """Of torch's old format, without storages."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    return file.getvalue() + program + pickle.dumps([], protocol=2)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


REBUILD = b"ctorch._utils\n_rebuild_tensor\n"


def changed(**attributes: bytes) -> bytes:
    """The steps of a pickle that set attributes of torch's function: BUILD, with the state of slots."""
    return REBUILD + b"N}" + b"".join(text(k) + v + b"s" for k, v in attributes.items()) + b"\x86b"


def test_no_patch_of_sources_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.load` compares the sources of a class in an old file, and may write what differs."""
    monkeypatch.chdir(tmp_path)
    before = torch._utils._rebuild_tensor.__name__
    whose = changed(dump_patches=b"\x88", __name__=text("made"))
    program = b"\x80\x02(" + text("module") + whose + text("a.py") + text("other") + b"tQ."
    Path("f.pt").write_bytes(old_file(program))
    with pytest.raises(ArtifactError, match="it modifies a function"):
        read_pickle(Path("f.pt"))
    same = b"\x80\x02(" + text("module") + REBUILD + text("a.py") + text("other") + b"tQ."
    Path("f.pt").write_bytes(old_file(same))
    read_pickle(Path("f.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt"]
    assert torch._utils._rebuild_tensor.__name__ == before


@pytest.mark.parametrize("target", [b"cbuiltins\ndict\n", b"ctorch\nfloat32\n", b"cos\nmkdir\n", REBUILD])
def test_what_is_shared_is_not_changed(tmp_path: Path, target: bytes) -> None:
    state = b"N}" + text("__doc__") + text("changed") + b"s\x86b"
    (tmp_path / "f.pt").write_bytes(old_file(b"\x80\x02" + target + state + b"."))
    with pytest.raises(ArtifactError, match="not a whole file of torch"):
        read_pickle(tmp_path / "f.pt")


def test_the_attacks_are_attacks(tmp_path: Path) -> None:
    for attack in (attacks(tmp_path / "made")[i] for i in (0, 1, 2, 4, 7, 8, 9, 10, 12)):
        pickle.loads(pickle.dumps(attack, protocol=4))
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


def with_records(path: Path, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with other content in some records, or without them."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            if (new := changes.get(name.partition("/")[2], content)) is not None:
                archive.writestr(name, new)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data/0": None}, "record data/0 is missing"),
        ({"data/0": b"short"}, "record data/0 is too short"),
        ({"data.pkl": None}, "TorchScript, or another archive"),
        ({"byteorder": b"big"}, "another byte order"),
        ({"data.pkl": b"\x80\x02cos\nmkdir"}, "not a whole file"),
    ],
)
def test_records_that_do_not_fit(tmp_path: Path, changes: dict[str, bytes | None], said: str) -> None:
    torch.save({"a": torch.randn(1000)}, path := tmp_path / "f.pt")
    with_records(path, {})
    assert len(read_pickle(path)["a"]) == 1000
    with_records(path, changes)
    with pytest.raises(ArtifactError, match=said):
        read_pickle(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """torch writes none; one of a few bytes could grow without limit."""
    torch.save({"a": torch.zeros(1000)}, path := tmp_path / "f.pt")
    with_records(path, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="compressed"):
        read_pickle(path)


def test_files_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "f.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_pickle(tmp_path / "f.pt")["a"].tolist() == [0, 1, 2]


class Tensorlike:
    """A tensor of a shape that its storage has no room for."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.strides, self.storage = shape, strides, torch.ones(8, dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        storage = self.storage.storage()  # type: ignore[no-untyped-call]
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.shape, self.strides, False, OrderedDict())


@FORMATS
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("shape, strides", [((9,), (1,)), ((3, 3), (3, 1)), ((2**40,), (0,)), ((4,), (-1,))])
def test_tensors_larger_than_their_storage(
    tmp_path: Path, zipped: bool, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    attack = Tensorlike(shape, strides, torch.float16)
    torch.save({"a": attack}, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match="it has a tensor"):
        read_pickle(tmp_path / "f.pt")


def test_options_that_hold_themselves(tmp_path: Path) -> None:
    space = argparse.Namespace(layers=2)
    space.self = space
    many: Any = ["x"]
    for _ in range(60):
        many = [many, many]  # 2**60 of them, if each were written out
    torch.save({"args": space, "many": many}, tmp_path / "f.pt")
    found = read_pickle(tmp_path / "f.pt")
    assert plain(found["args"]) == {"layers": 2, "self": None}
    once = plain(found["many"])
    assert once[0] is once[1] and isinstance(once[0][0], list)
    assert plain({(1, 2): "no text", "a": 1, 2: "b"}) == {"a": 1, 2: "b"}
