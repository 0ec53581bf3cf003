"""Files made to stop, to end or to fill the process that reads them: each is one line, soon, or harmless."""

from __future__ import annotations

import os
import resource
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.checkpoints.torch_files.plain import plain
from speech_ssl.checkpoints.torch_files.unpickling import Inert
from tests.checkpoints.test_fairseq import SIZES, written
from tests.checkpoints.test_pickles import old_file, text
from tests.checkpoints.transformers_models import made, saved

GIVEN = {**SIZES, "encoder_attention_heads": 2}
PROTO = b"\x80\x04"
TENSOR = b"ctorch._utils\n_rebuild_tensor\n("
MANY = b"]" + b"".join([b"(", *[b"K\x01"] * 1000, b"e"])
"""A list of a thousand numbers."""


def opened(path: Path, program: bytes) -> Any:
    path.write_bytes(old_file(PROTO + program))
    return read_pickle(path)


@pytest.fixture(autouse=True)
def no_memory() -> Iterator[None]:
    """None of these files needs any to speak of."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def doubled(times: int) -> bytes:
    """A tuple of the last tuple twice, and so on: 2**times parts if each were looked at."""
    return b"N\x85" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(times))


KEYS = {
    "deep": b")" + b"\x85" * 100_000,
    "wide": doubled(60),
    "colliding": b"\x8a\x09" + (2**61 - 1).to_bytes(9, "little"),
    "frozen": b"(\x91",
    "lists": b"]",
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(
    "before, after",
    [
        (b"}", b"Ns"),
        (b"}(", b"Nu"),
        (b"(", b"Nd"),
        (b"\x8f(", b"\x90"),
        (b"(", b"\x91"),
        (b"c__builtin__\nset\n](", b"e\x85R"),
        (b"ccollections\nOrderedDict\n](", b"N\x86e\x85R"),
    ],
)
def test_keys_that_cannot_be_hashed_in_time(tmp_path: Path, kind: str, before: bytes, after: bytes) -> None:
    with pytest.raises(ArtifactError, match="it has a key of an unknown kind"):
        opened(tmp_path / "f.pt", before + KEYS[kind] + after + b".")


NAMES = (b"_inductor", b"has_mps", b"half")


def test_keys_that_configs_have(tmp_path: Path) -> None:
    """Classes, as callbacks have them, types of numbers, and tuples of such."""
    found = opened(tmp_path / "f.pt", b"}(ca\nb\nNctorch\nhalf\nNca\nb\n)RNK\x01X\x01\x00\x00\x00a\x86Nu.")
    assert [type(key).__name__ for key in found] == ["Named", "dtype", "Inert", "tuple"]


def test_a_dict_with_defaults(tmp_path: Path) -> None:
    torch.save(defaultdict(list, a=[1]), tmp_path / "f.pt")
    assert read_pickle(tmp_path / "f.pt") == {"a": [1]}


def test_many_tuples_of_one_hash(tmp_path: Path) -> None:
    keys = b"".join(b"J" + number.to_bytes(4, "little") + b"\x85N" for number in range(20_000))
    with pytest.raises(ArtifactError, match="copies too much"):
        opened(tmp_path / "f.pt", b"}(" + keys + b"u.")


def test_names_of_any_length(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a name that is too long"):
        opened(tmp_path / "f.pt", text("a" * 10_000) + text("b") + b"\x93.")


def test_a_long_text_that_is_referred_to_often() -> None:
    long = "x" * 1_000_000
    shown = plain([long] * 100_000)
    assert len(shown[0]) == 10_000 and shown[0] is shown[-1]


def test_names_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some, torch imports a thousand modules, and makes folders."""

    def looked_up(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(torch, "__getattr__", looked_up)
    program = b"(" + b"".join(b"ctorch\n" + name + b"\n" for name in NAMES) + b"l."
    assert opened(tmp_path / "f.pt", program) == [("torch", "_inductor"), ("torch", "has_mps"), torch.float16]


def test_a_memo_of_any_size(tmp_path: Path) -> None:
    assert opened(tmp_path / "f.pt", b"Nr" + (2**32 - 1).to_bytes(4, "little") + b".") is None


STEPS = {
    "copies too much": MANY + b"\x94" + b"".join([b"c__builtin__\ntuple\nh\x00\x85R0"] * 200) + b"N.",
    "copies too": b"(" + b"K\x01" * 1000 + b"t\x94" + b"".join([b"ca\nb\nh\x00R0"] * 200) + b"N.",
    "calls something without arguments": b"ca\nb\nNR.",
    "calls something that is not a function": b"N)R.",
    "makes a container of something else": b"c__builtin__\nset\nK\x05\x85R.",
    "makes a dict of something else": b"ccollections\nOrderedDict\n](K\x01e\x85R.",
    "modifies a function": b"c__builtin__\nset\n}b.",
    "appends to something that is not a list": b"\x8fNa.",
    "sets items of something that is not a dict": b"]NNs.",
    "adds to something that is not a set": b"](N\x90.",
    "a step EXT1": b"\x82\x01.",
    "a step INST": b"(ios\nmkdir\n.",
    "a step OBJ": b"(cos\nmkdir\no.",
    "expected 8589934592 bytes in a bytearray8": b"\x96" + (2**33).to_bytes(8, "little") + b".",
    "expected 8589934592 bytes in a bytes8": b"\x8e" + (2**33).to_bytes(8, "little") + b".",
    "a tensor without a storage": TENSOR + b"NK\x00))tR.",
    "no record|storage of an unknown kind|refers to": b"NQ.",
    "names something without a name": b"NN\x93.",
}


@pytest.mark.parametrize("said", STEPS)
def test_steps_that_are_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as refused:
        opened(tmp_path / "f.pt", STEPS[said])
    assert "\n" not in str(refused.value)


class Tensorlike:
    def __init__(self, offset: Any, shape: Any, strides: Any) -> None:
        self.given = (offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.ones(8).storage()  # type: ignore[no-untyped-call]
        return torch._utils._rebuild_tensor_v2, (storage, *self.given)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
def test_shapes_that_are_none(tmp_path: Path, zipped: bool) -> None:
    long = (1,) * 10_000
    for given in ((0, long, long), (0, 2, 1), (0, (2.0,), (1,)), (0, (2,), (1, 1)), (7, (2,), (1,))):
        torch.save(Tensorlike(*given), tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ArtifactError, match="it has a tensor"):
            read_pickle(tmp_path / "f.pt")


def test_many_tensors_in_one_storage(tmp_path: Path) -> None:
    base = torch.ones(1_000_000)
    torch.save([base[:] for _ in range(3)], tmp_path / "f.pt")
    assert [len(each) for each in read_pickle(tmp_path / "f.pt")] == [1_000_000] * 3
    torch.save([base[:] for _ in range(500)], tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match="far larger than the file"):
        read_pickle(tmp_path / "f.pt")


def test_kinds_of_numbers_that_are_not_read(tmp_path: Path) -> None:
    torch.save({"c": torch.ones(2, dtype=torch.complex64), "x": torch.ones(2)}, tmp_path / "f.pt")
    found = read_pickle(tmp_path / "f.pt")
    assert isinstance(found["c"], Inert) and found["x"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_optimizers_stay_unread(tmp_path: Path, zipped: bool) -> None:
    moments = torch.ones(1000)
    content = {
        "last_optimizer_state": {0: moments},
        "model": {"x": torch.arange(5.0)},
        "optimizer": [moments],
    }
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "f.pt")
    assert found["last_optimizer_state"] is None and found["optimizer"] is None
    assert found["model"]["x"].tolist() == [0, 1, 2, 3, 4]


def test_archives_of_two_minds(tmp_path: Path) -> None:
    """torch and a scanner may read one record of two, and we the other."""
    torch.save({"a": torch.ones(3)}, tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    for extra in ("g/data.pkl", "g/other"):
        with zipfile.ZipFile(tmp_path / "g.pt", "w") as archive:
            for name, content in {**records, extra: b"N."}.items():
                archive.writestr(name, content)
        with pytest.raises(ArtifactError, match="records with the same name, or several folders"):
            read_pickle(tmp_path / "g.pt")


def test_messages_have_no_escapes(tmp_path: Path) -> None:
    key = b"X" + (8).to_bytes(4, "little") + b"\x1b[31m\x07\x07\n"
    program = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + b"NK\x02tQ."
    with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
        archive.writestr("f/data.pkl", b"\x80\x02" + program)
    with pytest.raises(ArtifactError, match=r"data/\?\[31m\?") as refused:
        read_pickle(tmp_path / "f.pt")
    assert str(refused.value).isprintable()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match="f.pt: not a file"):
        convert(tmp_path / "f.pt", tmp_path / "out")


def checkpoint(path: Path, options: Any = None, **weights: Tensor) -> Path:
    state = {**written(False), **weights}
    torch.save({"model": state, "cfg": {"model": {**GIVEN, **(options or {})}}}, path)
    return path


def many(times: int) -> Any:
    value: Any = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "options, said",
    [
        ({"dropout": 2.0}, "dropout of EncoderConfig must be from 0 to 1"),
        ({"dropout": float("nan")}, "dropout of EncoderConfig must be from 0 to 1"),
        ({"encoder_layerdrop": -1e308}, "layer_drop of EncoderConfig must be from 0 to 1"),
        ({"activation_fn": many(40)}, "'activation_fn' is "),
        ({"activation_fn": "y" * 1_000_000}, "'activation_fn' is "),
        ({"encoder_attention_heads": 10**6}, "must be a multiple of heads|from 1 to"),
        ({"conv_feature_layers": "'x'*100*100*100*100*5"}, "not a list of layers"),
        ({"conv_feature_layers": "(1,)*100*100*100*90"}, "not a list of layers"),
        ({"conv_feature_layers": f"[(16, 10, {10**30})] + [(16, 3, 2)] * 6"}, "strides .* from 1 to 1048576"),
    ],
)
def test_options_that_are_none(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as refused:
        open_checkpoint(checkpoint(tmp_path / "f.pt", options), pickles=True)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "options",
    [{"dropout": 10**400}, {"latent_groups": 10**5000}, {"dropout": torch.ones(2)}, {"max_distance": b"x"}],
)
def test_options_that_are_passed_over(tmp_path: Path, options: Any) -> None:
    open_checkpoint(checkpoint(tmp_path / "f.pt", options), pickles=True)


@pytest.mark.parametrize(
    "weights, said",
    [
        ({"post_extract_proj.weight": torch.empty(64_000_000, 0)}, "is empty"),
        ({"encoder.layers.0.fc1.weight": torch.empty(10**9, 0)}, "is empty"),
        ({"feature_extractor.conv_layers.0.0.weight": torch.zeros(100_000, 1, 10)}, "far more weights|shape"),
        (
            {"encoder.layers.0.fc1.weight": torch.ones(48, 128).long()},
            "holds torch.int64: no weights",
        ),
        ({"quantizer.vars": torch.ones(1, 10, 6, dtype=torch.int8)}, "hold no weights"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, weights: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        open_checkpoint(checkpoint(tmp_path / "f.pt", **weights), pickles=True)


def test_names_that_no_module_has(tmp_path: Path) -> None:
    odd = {name: torch.ones(1) for name in ("x\n\x1b[31m", "y" * 10**6, "quantizer.\ud800")}
    artifact = convert(checkpoint(tmp_path / "f.pt", **odd), tmp_path / "out")
    assert "left_out" not in artifact.config["training"]


def test_options_that_share_what_they_hold() -> None:
    state = {f"{number}": number for number in range(5000)}
    many_of_one = [Inert("x", (), state) for _ in range(5000)]
    made_plain = plain(many_of_one)
    assert made_plain[0] is made_plain[-1] and len(made_plain[0]) == 5000


def test_a_pickle_of_transformers_is_read_likewise(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = saved(made("Wav2Vec2", "Model"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for program in (b"}" + KEYS["deep"] + b"Ns.", b"}" + KEYS["wide"] + b"Ns."):
        (folder / "pytorch_model.bin").write_bytes(old_file(PROTO + program))
        with pytest.raises(ArtifactError, match="key of an unknown kind"):
            convert(folder, tmp_path / "out")
    np.savez(folder / "weights.npz", x=np.ones(2))
    (folder / "weights.npz").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="not a whole file of torch"):
        convert(folder, tmp_path / "out")
