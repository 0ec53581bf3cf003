"""The report of `speech-ssl doctor`, for people: a line or more for each part."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any


def written(report: Mapping[str, Any]) -> list[str]:
    """The lines of a report, for people."""
    packages = {name: version for name, version in (report["packages"] or {}).items() if version}
    rows = [
        ("versions", f"speech-ssl {report['speech_ssl']}, Python {report['python']}, {report['system']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("extras", _extras_row(report["extras"])),
        ("processor", _processor_row(report["processor"])),
        ("memory", _memory_row(report["memory"])),
        ("threads", _threads_row(report["threads"], report["environment"])),
        ("formats", ", ".join(report["formats"] or [])),
        *((device["device"], _device_row(device)) for device in report["devices"] or []),
        *(("problem", problem) for problem in report["problems"]),
    ]
    return [line for name, text in rows for line in _wrapped(name, text or "unknown, see the problems")]


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, width=110, initial_indent=f"{name:<11}", subsequent_indent=" " * 11, break_on_hyphens=False
    )


def _extras_row(extras: Mapping[str, list[str]] | None) -> str:
    if extras is None:
        return ""
    there = [name for name, missing in extras.items() if not missing]
    lacking = [f"{name} ({', '.join(missing)})" for name, missing in extras.items() if missing]
    return "; ".join(
        [", ".join(there) or "none", *([f"not installed: {', '.join(lacking)}"] if lacking else [])]
    )


def _processor_row(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    native = " and ".join(["fp32", *found["native"]])
    quota = "" if found["quota"] is None else f" (the time of {found['quota']:g})"
    return (
        f"{found['name']} ({found['machine']}), {found['cores']} of {found['of']} cores{quota}, "
        f"{found['simd']}; multiplies {native}"
    )


def _memory_row(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    parts = [f"{found['total']} GiB"]
    parts += [f"{found['available']} available"] if found["available"] is not None else []
    parts += [f"{found['limit']} for this container"] if found["limit"] is not None else []
    return ", ".join(parts)


def _threads_row(found: Mapping[str, int] | None, environment: Mapping[str, str] | None) -> str:
    if found is None:
        return ""
    settings = "".join(f", {name}={value}" for name, value in (environment or {}).items())
    return f"{found['torch']}, {found['between_operations']} between operations{settings}"


def _device_row(device: Mapping[str, Any]) -> str:
    parts = []
    if "name" in device:
        driver = f", driver {device['driver']}" if device["driver"] else ""
        parts.append(
            f"{device['name']}, compute capability {device['capability']}, {device['memory']} GiB, "
            f"CUDA {device['cuda']}{driver}"
        )
    parts.append(f"training in {device['training_precision']}")
    if (default := device["default"]) is not None:
        parts.append(
            f"inference with the packaged model in {default['precision']}: {default['audio_s']:g} s of audio "
            f"in {default['pass_s']:.3f} s, real-time factor {default['real_time_factor']:.4f}; loaded in "
            f"{default['load_s']:.1f} s"
        )
    return "; ".join(parts)
