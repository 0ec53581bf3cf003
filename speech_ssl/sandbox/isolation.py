"""What processes that are started may import, and what decoders see of the environment.

A program may be started anywhere, in a folder that was downloaded too: a `json.py` there is nobody's code but
that folder's.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

KEPT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUSERBASE",
    "TMPDIR",
)
"""What a decoder needs to find Python and its libraries. All else may be a secret."""


def environment() -> dict[str, str]:
    """Of a decoder, which files may take over."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | _imports() | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def keep_imports() -> None:
    """The same code for all processes that are started from now on."""
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(_imports())


def _imports() -> dict[str, str]:
    path = import_path()
    return {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})


def import_path() -> list[str]:
    """For PYTHONPATH: what it has, but for what stands for the working directory, and where this code lies if
    Python would not find it by itself: in a checkout that is not installed."""
    given = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [str(path.absolute()) for path in given if path.is_absolute() or path.resolve() != Path.cwd()]
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    home = str(Path(__file__).parents[2])
    return kept + [home] * (home in sys.path and home not in installed.union(kept))
