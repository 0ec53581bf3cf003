"""`python -m service` as on a root filesystem that is read-only, whoever runs it: it may write to the
temporary folder and to devices, and nowhere else."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
MAY_CHANGE = (tempfile.gettempdir(), "/dev/")


def refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in CHANGES or (event == "open" and args[2] & WRITING):
        path = "" if isinstance(args[0], int) else os.fsdecode(args[0])
        if event in ("os.mkdir", "os.remove", "os.rmdir") and args[-1] >= 0:  # relative to an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), path)  # noqa: PTH115, PTH118
        if path and not path.startswith(MAY_CHANGE):
            print(f"refused: {event} {path}", file=sys.stderr)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # Python does without, silently
    sys.addaudithook(refuse)
    from service.__main__ import main

    sys.exit(main())
