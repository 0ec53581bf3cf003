"""The rules of the house, as functions from a source text to its offences; test_architecture applies them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SCRIPT_LINES = 350, 60, 29

# Module -> the first-party modules it may import besides its own package. The longest entry that fits a
# module holds. This is the whole architecture: training code never reaches the service.
OWN = ("speech_ssl", "service", "recipes", "benchmarks", "examples", "tests")
SPEECH_SSL = (
    "speech_ssl.inference",
    "speech_ssl.audio",
    "speech_ssl.files",
    "speech_ssl.sandbox",
    "speech_ssl.types",
)  # what the service is made on
SERVICE_BASE = tuple(
    f"service.{module}"
    for module in (
        "batcher",
        "batches",
        "errors",
        "metrics",
        "pool",
        "record",
        "settings",
        "shares",
    )
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "speech_ssl": ("speech_ssl.inference", "speech_ssl.types"),  # the package itself: lazily
    "speech_ssl.types": (),
    "speech_ssl.precision": (),  # what a device computes natively
    "speech_ssl.files": (),  # what is written whole or not at all
    "speech_ssl.text": (),  # the one form of a text, for data, decoding and evaluation
    "speech_ssl.audio": ("speech_ssl.types",),
    "speech_ssl.sandbox": ("speech_ssl.types", "speech_ssl.audio"),
    "speech_ssl.model": ("speech_ssl.types",),
    "speech_ssl.checkpoints": ("speech_ssl.files", "speech_ssl.types", "speech_ssl.text", "speech_ssl.model"),
    "speech_ssl.objectives": ("speech_ssl.types", "speech_ssl.model"),
    "speech_ssl.data": ("speech_ssl.files", "speech_ssl.types", "speech_ssl.audio", "speech_ssl.text"),
    "speech_ssl.training": (
        "speech_ssl.files",
        "speech_ssl.types",
        "speech_ssl.precision",
        "speech_ssl.objectives.base",
    ),
    "speech_ssl.training.run": (
        "speech_ssl.files",
        "speech_ssl.types",
        "speech_ssl.precision",
        "speech_ssl.objectives.base",
        "speech_ssl.model",
    ),
    "speech_ssl.inference": (
        "speech_ssl.types",
        "speech_ssl.precision",
        "speech_ssl.text",
        "speech_ssl.audio",
        "speech_ssl.model",
        "speech_ssl.checkpoints",
    ),
    "speech_ssl.extraction": (
        "speech_ssl.files",
        "speech_ssl.types",
        "speech_ssl.audio",
        "speech_ssl.data",
        "speech_ssl.inference",
        "speech_ssl.sandbox",
    ),
    "speech_ssl.evaluation": tuple(
        f"speech_ssl.{part}"
        for part in (
            "types",
            "files",
            "precision",
            "text",
            "audio",
            "model",
            "checkpoints",
            "objectives",
            "data",
            "inference",
        )
    ),
    "speech_ssl.runs": tuple(
        f"speech_ssl.{part}"
        for part in (
            "types",
            "files",
            "precision",
            "text",
            "audio",
            "model",
            "checkpoints",
            "objectives",
            "data",
            "training",
            "inference",
            "extraction",
            "evaluation",
        )
    ),
    "speech_ssl.client": (),  # of a service elsewhere: no model, no PyTorch
    "speech_ssl.doctor": ("speech_ssl.precision", "speech_ssl.audio", "speech_ssl.inference"),
    "speech_ssl.doctor_output": (),
    "speech_ssl.cli": ("speech_ssl", "service"),
    "speech_ssl.cli_answers": ("speech_ssl",),
    "speech_ssl.cli_options": (),
    "speech_ssl.cli_output": ("speech_ssl",),
    "service": SPEECH_SSL,
    **dict.fromkeys(SERVICE_BASE, (*SPEECH_SSL, *SERVICE_BASE)),
    "service.models": (*SPEECH_SSL, *SERVICE_BASE),
    "service.edge": (*SPEECH_SSL, *SERVICE_BASE, "service.auth", "service.models"),
    "service.v1": (*SPEECH_SSL, *SERVICE_BASE, "service.models"),
    "service.stream": (
        *SPEECH_SSL,
        *SERVICE_BASE,
        "service.edge.connections",
        "service.models",
        "service.v1",
    ),
    "service.jobs": (*SPEECH_SSL, *SERVICE_BASE, "service.models", "service.v1"),
    "service.open_inference": (*SPEECH_SSL, *SERVICE_BASE, "service.models", "service.v1"),
    "service.playground": ("speech_ssl.inference", *SERVICE_BASE),
    "recipes": ("speech_ssl",),
    "benchmarks": ("speech_ssl",),
    "docs": ("speech_ssl",),  # docs/conf.py
    "examples": ("speech_ssl", "recipes"),
    "scripts": ("speech_ssl",),
    "tests": OWN,
}
SHARED_OBJECTIVES = tuple(
    f"speech_ssl.objectives.{name}"
    for name in (
        *("base", "tuned", "masking", "teacher", "codebooks", "units"),
        *("views", "rooms", "mel_views", "two_views", "global_batch"),
    )
)
NO_THIRD_PARTY = {"service": {"torch", "torchaudio"}}
ONLY_THIRD_PARTY = {
    "speech_ssl.types": {"torch", "numpy"},
    "speech_ssl.client": {"httpx", "numpy", "pydantic", "tqdm"},
}

OFFERED = ("speech_ssl", "speech_ssl.__version__") + tuple(
    f"speech_ssl.{name}" for name in ("load", "load_encoder", "Features", "Runtime", "Transcript")
)
"""All that the bare package offers: as `speech_ssl.inference`."""
COMPUTED = "<computed>"

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FOREIGN = re.compile(
    r"/(?:tmp|work|farm|root)/[a-z]|pypi\.org|python[h]osted|registry\.npmjs|deb\.debian|download\.pytorch"
)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def home(module: str) -> str | None:
    """The entry of the table that holds for a module; None if it has no place in the architecture."""
    found = max((key for key in MAY_IMPORT if within(module, (key,))), key=len, default=None)
    return None if found == "speech_ssl" != module else found


def import_targets(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Absolute dotted targets of one import; `from a import b` is `a.b`, be it a module or a name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*parents, *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
        first = node.args[0]
        return [first.value if isinstance(first, ast.Constant) else COMPUTED]
    return []


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Every import, wherever it stands: (target, names of the functions around it, line)."""

    def visit(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], int]]:
        for target in import_targets(node, module, is_package):
            yield target, around, getattr(node, "lineno", 0)
        inside = (*around, node.name) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else around
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, ())


def may_import(module: str, target: str, around: tuple[str, ...]) -> bool:
    own = home(module)
    top = target.split(".")[0]
    if own is None:
        return False
    if target == COMPUTED:
        return own == "tests" or module == "recipes.compare_objectives"  # of the recipes that are there
    if top not in OWN:
        only = ONLY_THIRD_PARTY.get(own)
        return top not in NO_THIRD_PARTY.get(own.split(".")[0], ()) and (
            only is None or top in only or top in sys.stdlib_module_names
        )
    if target in OFFERED:
        target = "speech_ssl.inference"
    if top == "service" and own == "speech_ssl.cli" and "serve" not in around:
        return False
    if own == "speech_ssl.objectives":
        return within(target, (*MAY_IMPORT[own], *SHARED_OBJECTIVES))
    package = ".".join(own.split(".")[:2]) if own != "speech_ssl" else "speech_ssl.inference"
    return within(target, (*MAY_IMPORT[own], package))


def rule_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    return [
        f"line {line}: {module} may not import {target}"
        for target, around, line in imports(ast.parse(source), module, is_package)
        if not may_import(module, target, around)
    ]


def rule_length(source: str) -> list[str]:
    lines = source.count("\n")
    problems = [f"{lines} lines, more than {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                problems.append(f"{node.name} has {length} lines, more than {MAX_FUNCTION_LINES}")
    return problems


def rule_two_masks(source: str) -> list[str]:
    """There are two masks, `valid` and `hidden`; a parameter called `mask` leaves open which."""
    return [
        f"line {node.lineno}: a parameter called {node.arg!r}: say valid or hidden"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.arg) and re.fullmatch(r"masks?(_[A-Z]+)?", node.arg)
    ]


def rule_no_pickle(source: str) -> list[str]:
    problems = []
    tree = ast.parse(source)
    for target, _, line in imports(tree, "", False):
        if target.split(".")[0] in PICKLES or target in ("torch.save", "torch.load"):
            problems.append(f"line {line}: imports {target}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.save" or (called == "torch.load" and options.get("weights_only") != "True"):
            problems.append(f"line {node.lineno}: {called} without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            problems.append(f"line {node.lineno}: {called} allows pickles")
    return problems


def rule_no_foreign_places(text: str) -> list[str]:
    """Paths of somebody's machine, and hosts that packages come from: users have their own."""
    return [
        f"line {number}: {found.group()!r}"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := FOREIGN.search(line))
    ]


def rule_script(text: str) -> list[str]:
    lines = text.splitlines()
    problems = [f"{len(lines)} lines, not under 30"] if len(lines) > MAX_SCRIPT_LINES else []
    if lines[:1] != ["#!/usr/bin/env bash"] or "set -euo pipefail" not in lines:
        problems.append("no bash header with `set -euo pipefail`")
    return problems
