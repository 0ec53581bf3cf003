"""What reports share: pages that ask for nothing from elsewhere, and figures. Needs the `train` extra."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_can_report() -> None:
    """Raises ValueError that says what is not installed."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"a report needs {package}: pip install 'speech-ssl[train]'")


def render_page(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A template of `assets`. It also has the filters `base64` and `pixels`, of a PNG at twice the size."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "pixels": lambda png: [int.from_bytes(png[at : at + 4]) // 2 for at in (16, 20)],  # of its header
        **filters,
    }
    text = (files("speech_ssl") / "assets" / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)


def new_figure(width: float, height: float) -> Figure:
    """In inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """At twice the size."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=192)
    return file.getvalue()
