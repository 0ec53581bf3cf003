"""What a bug report needs: versions, the machine, what is chosen for it, and how fast the packaged model is.

Each part is found out by itself, so that what is broken is told beside what is not. Nothing here names a
person, a folder of theirs, or a secret.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import speech_ssl

Part: TypeAlias = dict[str, Any]

DISTRIBUTION = "speech-ssl"
FOR_DEVELOPERS = ("test", "check")
ALSO = ("transformers",)
"""No dependency, but what checkpoints are of."""
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
"""All that is told of the environment: what changes arithmetic or speed."""
HARMLESS = re.compile(r"[\w.,:+-]{1,64}")
CLIP = "confbridge-mute-extended.flac"
CLIP_S = 5.0
PASSES = 3
LONGEST_S = 2.0
"""A pass that takes longer is not repeated."""
GIB = 1 << 30


def examine() -> Part:
    """All of it, as JSON may hold it. `problems` says what is broken, a line each."""
    problems: list[str] = []
    parts: dict[str, Callable[[], Any]] = {
        "packages": packages,
        "extras": extras,
        "processor": processor,
        "memory": memory,
        "threads": threads,
        "environment": environment,
        "formats": formats,
        "devices": devices,
    }
    report: Part = {
        "speech_ssl": speech_ssl.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        **{name: _tried(name, part, problems) for name, part in parts.items()},
    }
    missing = [name for name, version in (report["packages"] or {}).items() if version is None]
    problems += [f"not installed: {', '.join(missing)}"] if missing else []
    for device in report["devices"] or []:
        name = device["device"]
        device["default"] = _tried(f"the packaged model on {name}", partial(timed, name), problems)
    return _without_names({**report, "problems": problems})  # type: ignore[no-any-return]


def _tried(name: str, part: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return part()
    except Exception as error:  # whatever it is, it is what we are here to tell
        line = " ".join(str(error).split())
        problems.append(
            f"{name}: {line if isinstance(error, ValueError) else f'{type(error).__name__}: {line}'}"
        )
        return None


def _without_names(value: Any) -> Any:
    """With the folders that somebody's name may be in replaced by what they are."""
    if isinstance(value, dict):
        return {key: _without_names(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_names(each) for each in value]
    if not isinstance(value, str):
        return value
    places = {Path(__file__).parent: "speech_ssl", Path(sys.prefix): "PREFIX", Path.home(): "~"}
    for place, name in places.items():
        if len(place.parts) > 1:
            value = value.replace(str(place), name)
    return value


def packages() -> dict[str, str | None]:
    """Versions of what is required (None: it is not installed) and of what else of ours is installed."""
    required, optional = _requirements()
    more = (name for names in optional.values() for name in names)
    found = {name: version for name in (*more, *ALSO) if (version := _version(name))}
    return {name: _version(name) for name in required} | found | _libraries()


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of what is required, and of what each extra adds."""
    required: list[str] = []
    optional: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        assert name is not None
        if extra is None:
            required.append(name[0])
        elif extra[1] not in FOR_DEVELOPERS:
            optional.setdefault(extra[1], []).append(name[0])
    return required, optional


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> dict[str, str]:
    """What libsndfile and FFmpeg are, which come inside other packages."""
    found = {}
    with suppress(ImportError, OSError):  # OSError: soundfile looks for the library itself
        import soundfile

        found["libsndfile"] = str(soundfile.__libsndfile_version__)
    with suppress(ImportError, AttributeError):
        import av

        found["FFmpeg"] = str(av.ffmpeg_version_info)
    return found


def extras() -> dict[str, list[str]]:
    """What each extra lacks: nothing, if it is installed."""
    _, optional = _requirements()
    return {extra: [name for name in names if not _version(name)] for extra, names in optional.items()}


def processor() -> Part:
    import torch

    from speech_ssl.precision import emulation, processor_name

    affinity = getattr(os, "sched_getaffinity", None)
    quota = re.match(
        r"(\d+) (\d+)", _text("/sys/fs/cgroup/cpu.max")
    )  # of a container: of each period so much
    cpu = torch.device("cpu")
    return {
        "name": processor_name(),
        "machine": platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "of": os.cpu_count(),
        "quota": int(quota[1]) / int(quota[2]) if quota else None,
        "simd": torch.backends.cpu.get_cpu_capability(),
        "native": [name for name in ("bf16", "fp16") if emulation(name, cpu) is None],
    }


def memory() -> dict[str, float | None]:
    """GiB: of the machine, free, and what a container may take."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    return {
        "total": round(total / GIB, 1),
        "available": round(int(available[1]) * 1024 / GIB, 1) if available else None,
        "limit": round(int(limit) / GIB, 1) if limit.isdecimal() else None,
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def threads() -> dict[str, int]:
    import torch

    return {"torch": torch.get_num_threads(), "between_operations": torch.get_num_interop_threads()}


def environment() -> dict[str, str]:
    """The variables of a short list that are set; one with an odd value is told as set, no more."""
    values = {name: value for name in ENVIRONMENT if (value := os.environ.get(name)) is not None}
    return {name: value if HARMLESS.fullmatch(value) else "(set)" for name, value in values.items()}


def formats() -> list[str]:
    from speech_ssl import audio

    return list(audio.FORMATS)


def devices() -> list[Part]:
    """The processor and each GPU, with the precision that "auto" is in training."""
    import torch

    from speech_ssl.precision import native

    found: list[Part] = [{"device": "cpu", "training_precision": native(torch.device("cpu"))}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "training_precision": native(torch.device("cuda", index)),
                "name": about.name,
                "capability": f"{about.major}.{about.minor}",
                "memory": round(about.total_memory / GIB, 1),
                "cuda": torch.version.cuda,
                "driver": _driver(),
            }
        )
    return found


def _driver() -> str | None:
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", _text("/proc/driver/nvidia/version"))
    return found[1] if found else None


def timed(device: str) -> Part:
    """The packaged model on a spoken prompt: what "auto" is in inference, and seconds of a pass."""
    from speech_ssl import audio

    began = time.perf_counter()
    runtime = speech_ssl.load("default", device=device)
    loaded_s = time.perf_counter() - began
    wave = audio.decode(Path(__file__).parent / "assets" / "prompts" / "audio" / CLIP, stop_s=CLIP_S)
    passes_s: list[float] = []
    while len(passes_s) <= PASSES and sum(passes_s) < LONGEST_S:  # the first one warms up
        began = time.perf_counter()
        runtime.encode([wave])
        passes_s.append(time.perf_counter() - began)
    seconds = sorted(passes_s[1:] or passes_s)[len(passes_s[1:]) // 2]
    audio_s = len(wave) / runtime.sample_rate
    return {
        "precision": runtime.precision,
        "load_s": round(loaded_s, 3),
        "audio_s": audio_s,
        "pass_s": round(seconds, 4),
        "real_time_factor": round(seconds / audio_s, 5),
    }
