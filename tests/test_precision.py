"""What a device computes natively, on processors and GPUs that need not be there."""

from __future__ import annotations

import platform

import pytest
import torch

from speech_ssl.precision import DTYPES, Precision, emulation, native, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("capability", "best", "emulated"),
    [
        ((6, 1), "fp32", {"bf16"}),
        ((7, 5), "fp16", {"bf16"}),
        ((8, 0), "bf16", set()),
        ((9, 0), "bf16", set()),
    ],
)
def test_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], best: str, emulated: set[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert native(GPU) == best
    assert {name for name in DTYPES if emulation(name, GPU)} == emulated
    for name in emulated:
        line = emulation(name, GPU)
        assert line is not None and line.startswith(f"GPU 1 has no {name} arithmetic") and "\n" not in line


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "amx", "best"),
    [
        ("x86_64", False, False, False, "fp32"),  # AVX2, or told to take no more
        ("x86_64", False, True, True, "fp32"),
        ("x86_64", True, False, False, "fp32"),  # AVX-512 or AVX-NE-CONVERT: it emulates the products
        ("AMD64", True, True, False, "bf16"),
        ("x86_64", True, False, True, "bf16"),
        ("aarch64", True, False, False, "bf16"),
        ("arm64", False, False, False, "fp32"),
    ],
)
def test_processors(
    monkeypatch: pytest.MonkeyPatch, machine: str, onednn: bool, avx512_bf16: bool, amx: bool, best: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert native(CPU) == best
    assert (emulation("bf16", CPU) is None) == (best == "bf16")
    assert emulation("fp32", CPU) is None
    line = emulation("fp16", CPU)
    assert line is not None and "ten times" in line and "'auto'" in line


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_what_is_asked_for_is_taken_and_auto_is_native(precision: Precision) -> None:
    assert resolve(precision, CPU) == precision
    assert resolve("auto", CPU) == native(CPU)


def test_here_the_answer_is_one_of_them() -> None:
    assert native(CPU) in ("fp32", "bf16") and emulation(native(CPU), CPU) is None
