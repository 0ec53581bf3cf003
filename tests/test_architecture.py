"""The architecture, enforced over the syntax tree; and each rule tried on a made-up offender."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import speech_ssl
from tests.architecture import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    home,
    rule_imports,
    rule_length,
    rule_no_foreign_places,
    rule_no_pickle,
    rule_script,
    rule_two_masks,
)

ROOT = Path(__file__).resolve().parent.parent


def project_files() -> list[Path]:
    """What git knows, and what it would be told next."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in sorted(listed.split("\0")) if name and (path := ROOT / name).is_file()]


def python_files() -> list[tuple[str, str, str, bool]]:
    """(name for messages, source, module, is a package) of each Python file."""
    rows = []
    for path in project_files():
        if path.suffix == ".py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            rows.append((str(path.relative_to(ROOT)), path.read_text(), module, is_package))
    return rows


def report(problems: dict[str, list[str]]) -> str:
    return "\n".join(f"{name}: {problem}" for name, found in problems.items() for problem in found)


def test_imports_follow_the_table():
    problems = {name: rule_imports(source, module, pkg) for name, source, module, pkg in python_files()}
    assert not report(problems)


def test_every_python_file_has_a_room():
    assert [name for name, _, module, _ in python_files() if home(module) is None] == []


def test_files_and_functions_are_short():
    assert not report({name: rule_length(source) for name, source, _, _ in python_files()})


def test_no_parameter_is_called_mask():
    inside = [row for row in python_files() if row[2].startswith("speech_ssl")]
    assert not report({name: rule_two_masks(source) for name, source, _, _ in inside})


def test_nothing_is_pickled():
    # It reads those of other libraries, and makes only plain data of them.
    reads = "speech_ssl.checkpoints.torch_files.pickles"
    inside = [row for row in python_files() if not row[2].startswith("tests") and row[2] != reads]
    assert not report({name: rule_no_pickle(source) for name, source, _, _ in inside})


def test_no_machine_paths_or_package_hosts():
    problems = {}
    for path in project_files():
        try:
            problems[str(path.relative_to(ROOT))] = rule_no_foreign_places(path.read_text())
        except UnicodeDecodeError:
            continue  # sound, weights, pictures
    assert "README.md" in problems
    assert not report(problems)


def test_scripts_are_short():
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix]
    scripts.append(ROOT / ".ci" / "run")
    assert not report({p.name: rule_script(p.read_text()) for p in scripts})
    assert all(p.stat().st_mode & 0o111 for p in scripts)


def test_importing_the_package_does_no_work():
    code = "import sys, speech_ssl; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_it_gives_is_there_when_asked_for_and_values_need_no_torch():
    names = sorted(set(speech_ssl.__all__) - {"__version__"})
    assert names == ["Features", "Runtime", "Transcript", "load", "load_encoder"]
    assert all(getattr(speech_ssl, name).__name__ == name for name in names)
    code = "import sys, speech_ssl as s; s.Features, s.Transcript; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FORBIDDEN_IMPORTS = [
    ("speech_ssl.types", "import soundfile"),
    ("speech_ssl.audio", "from speech_ssl.model import Encoder"),
    ("speech_ssl.model.encoder", "from speech_ssl import audio"),
    ("speech_ssl.model.encoder", "from ..objectives import base"),
    ("speech_ssl.checkpoints.artifact", "def f():\n    from speech_ssl.inference import load"),
    ("speech_ssl.objectives.hubert", "from .wav2vec2 import quantize"),
    ("speech_ssl.objectives.hubert", "from speech_ssl.data import loader"),
    ("speech_ssl.data.loader", "if TYPE_CHECKING:\n    from speech_ssl.model import Encoder"),
    ("speech_ssl.training.loop", "import speech_ssl.model"),
    ("speech_ssl.training.loop", "from speech_ssl.objectives.wav2vec2 import Wav2Vec2"),
    ("speech_ssl.inference.runtime", "from speech_ssl.data.manifest import read_manifest"),
    ("speech_ssl.inference.runtime", "import importlib\nimportlib.import_module('speech_ssl.training.loop')"),
    ("speech_ssl.inference.runtime", "importlib.import_module(name)"),
    ("speech_ssl.evaluation.probes.linear", "from speech_ssl import training"),
    ("speech_ssl.inference.runtime", "from speech_ssl import runs"),
    ("speech_ssl.training.loop", "from speech_ssl.runs.events import Listener"),
    ("speech_ssl.runs.command", "from recipes.pretrain_wav2vec2 import tiny"),
    ("service.v1.routes", "from speech_ssl import runs"),
    ("speech_ssl.client.sync", "from speech_ssl.types import Waveform"),
    ("speech_ssl.client.aio", "def f():\n    import torch"),
    ("speech_ssl.cli", "from service.app import create_app"),
    ("speech_ssl.cli", "def embed():\n    import service"),
    ("speech_ssl.cli", "import recipes.smoke"),
    ("speech_ssl.misc", "import speech_ssl.training"),
    ("service.v1.routes", "import torch"),
    ("service.v1.routes", "def f():\n    from torch import nn"),
    ("service.v1.routes", "from speech_ssl.model import presets"),
    ("recipes.smoke", "import service"),
    ("benchmarks.speed", "import recipes"),
    ("unknown.place", "import json"),
]
ALLOWED_IMPORTS = [
    ("speech_ssl.types", "import torch, numpy, dataclasses"),
    ("speech_ssl.audio", "import soxr\nfrom speech_ssl.types import Waveform"),
    (
        "speech_ssl.model.encoder",
        "from speech_ssl.model.frontends.wave import ConvFrontend\nfrom . import config",
    ),
    (
        "speech_ssl.objectives.hubert",
        "from .base import Objective\nfrom speech_ssl.objectives import masking",
    ),
    ("speech_ssl.training.run", "from speech_ssl.model import Encoder\nfrom .config import Run"),
    ("speech_ssl.training.loop", "from speech_ssl.objectives.base import Objective"),
    ("speech_ssl.extraction.extract", "from speech_ssl.data.manifest import read_manifest\nimport pyarrow"),
    ("speech_ssl.evaluation.probes.linear", "from speech_ssl import load, types"),
    ("speech_ssl.cli", "def serve():\n    from service.app import create_app"),
    (
        "service.v1.routes",
        "import speech_ssl\nfrom speech_ssl.inference import Runtime\nfrom .schemas import Answer",
    ),
    ("speech_ssl.runs.probing", "from speech_ssl.training.events import silent\nfrom . import events"),
    ("recipes.smoke", "import torch\nfrom speech_ssl.training.loop import train"),
]


@pytest.mark.parametrize(("module", "source"), FORBIDDEN_IMPORTS)
def test_import_rule_bites(module, source):
    assert rule_imports(source, module)


@pytest.mark.parametrize(("module", "source"), ALLOWED_IMPORTS)
def test_import_rule_lets_pass(module, source):
    assert rule_imports(source, module) == []


def test_relative_imports_of_a_package_count_from_itself():
    assert rule_imports("from .audio import decode", "speech_ssl.model", is_package=True) == []
    assert rule_imports("from ..audio import decode", "speech_ssl.model", is_package=True)


def test_other_rules_bite():
    assert rule_length("x = 1\n" * (MAX_FILE_LINES + 1))
    assert rule_length("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES)
    assert not rule_length("def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1))
    for bad in ("def f(x, mask): ...", "async def f(*, mask_BT=None): ...", "f = lambda mask: mask"):
        assert rule_two_masks(bad)
    assert not rule_two_masks("def f(valid_BT, hidden_BT, mask_prob): mask = valid_BT & hidden_BT")
    for bad in (
        "import pickle",
        "from joblib import dump",
        "torch.save(model, path)",
        "from torch import save",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ):
        assert rule_no_pickle(bad)
    assert not rule_no_pickle("import torch\ntorch.load(path, weights_only=True)\nnp.load(path)")
    for bad in (
        "at /" + "work/main",
        "in /" + "tmp/clip.wav",
        "https://pypi" + ".org/simple",
        "deb" + ".debian.net",
    ):
        assert rule_no_foreign_places(bad)
    assert not rule_no_foreign_places("see README.md and https://creativecommons.org, a/b/tmp_path")
    good = "#!/usr/bin/env bash\nset -euo pipefail\n"
    assert rule_script(good) == []
    assert rule_script(good + "true\n" * 28) and rule_script("#!/bin/sh\ntrue\n")
