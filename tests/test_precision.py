"""What a device computes natively, told from what torch and oneDNN say of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from speech_ssl import precision
from speech_ssl.precision import Precision, emulation, native, resolve

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """A processor as torch and oneDNN see it."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)

    def described(machine: str, onednn: bool, avx512_bf16: bool = False, amx: bool = False) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(precision, "_has_onednn", lambda: True)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return described


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    def described(major: int, minor: int) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
        return torch.device("cuda", 0)

    return described


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_gpus(gpu, capability, expected):
    assert native(gpu(*capability)) == expected


PROCESSORS = {
    "AVX2": (("x86_64", False), "fp32"),
    "AVX2 with AVX-NE-CONVERT": (("x86_64", True), "fp32"),
    "AVX-512 without bf16": (("x86_64", True), "fp32"),
    "Zen 4, Cooper Lake": (("x86_64", True, True), "bf16"),
    "AMX": (("AMD64", True, True, True), "bf16"),
    "AVX512_BF16 that oneDNN may not use": (("x86_64", False, True), "fp32"),
    "Neoverse V1": (("aarch64", True), "bf16"),
    "Neoverse N1": (("aarch64", False), "fp32"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(processor, name):
    described, expected = PROCESSORS[name]
    processor(*described)
    assert native(CPU) == expected
    assert (emulation("bf16", CPU) is None) == (expected == "bf16")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("AVX512_CORE_VNNI", "fp32"), ("avx512_core", "fp32"), ("AVX512_CORE_BF16", "bf16")],
)
def test_an_instruction_set_that_onednn_is_held_to(processor, monkeypatch, limit, expected):
    processor("x86_64", True, True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native(CPU) == expected


def test_without_onednn(processor, monkeypatch):
    processor("x86_64", True, True, True)
    monkeypatch.setattr(precision, "_has_onednn", lambda: False)
    assert native(CPU) == "fp32" and emulation("fp16", CPU) is not None


@pytest.mark.slow
@pytest.mark.skipif(platform.machine().lower() not in precision.X86, reason="oneDNN has no such limit here")
def test_this_processor_held_to_avx2():
    """oneDNN reads the variable once, so it takes a process."""
    code = "import torch; from speech_ssl.precision import native; print(native(torch.device('cpu')))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "fp32\n"


def test_what_is_emulated_is_told_in_one_line(processor, gpu):
    processor("x86_64", False)
    for asked in ("bf16", "fp16"):
        said = emulation(asked, CPU)
        assert said is not None and said.startswith(
            f"this processor has no {asked} arithmetic and emulates it"
        )
        assert "ten times" in said and "'auto'" in said and "\n" not in said
    assert emulation("fp32", CPU) is None
    old, new = gpu(7, 5), gpu(7, 5)
    assert str(emulation("bf16", old)).startswith("Some GPU has no bf16 arithmetic")
    assert emulation("fp16", old) is None
    new = gpu(8, 0)
    assert emulation("bf16", new) is None and emulation("fp16", new) is None


def test_fp16_is_native_where_onednn_takes_it(processor):
    processor("x86_64", True, True, True)
    assert emulation("fp16", CPU) is None


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp32"])
def test_what_is_asked_for_is_taken_and_auto_is_native(asked: Precision):
    assert resolve(asked, CPU) == asked
    assert resolve("auto", CPU) == native(CPU)
