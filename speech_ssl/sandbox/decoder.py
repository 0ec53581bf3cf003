"""The process that decodes: requests in on stdin, blocks of samples out on stdout.

`speech_ssl.sandbox.process` starts it and is the only one that speaks with it. It has limits on memory and on
each file's processor time, and may die of a file: nothing else does then.

In:  a line of JSON {"path", "size", "cpu_s", "options"}, the options of `speech_ssl.audio.stream`; without a
     path, `size` bytes of a file; for each block, one byte: "+" to go on, or "-" to leave the rest.
Out: messages of one letter and a length: "R" when it has started; of each file "B" a block (float32), "W" a
     warning and "E" an error (its code, a line break, its message), "." the end. A block is sent when the one
     before it has been answered: the next is decoded meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

from speech_ssl.audio import AudioError, AudioWarning, Limits, stream

HEAD = struct.Struct("<cI")
STARTED, BLOCK, WARNING, ERROR, END = b"R", b"B", b"W", b"E", b"."
GO_ON, ENOUGH = b"+", b"-"
UNREADABLE = "unreadable"
"""The code of a path that cannot be opened."""


def main() -> None:
    """The argument is the most memory, in bytes of address space."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):  # what a library prints may be of the file: neither for the service nor its log
        os.dup2(nowhere, standard)
    requests = sys.stdin.buffer
    tell(answers, STARTED)
    while line := requests.readline():
        asked = json.loads(line)
        limit_cpu(asked["cpu_s"])
        source = asked["path"] or requests.read(asked["size"])
        if len(source) < asked["size"]:
            return
        options = asked["options"]
        answer(source, options | {"limits": Limits(**options["limits"])}, requests, answers)


def limit_cpu(seconds: float) -> None:
    """From now on; beyond it the system ends the process."""
    soft = resource.RLIM_INFINITY
    if seconds < math.inf:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def answer(source: str | bytes, options: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    def warn(warning: AudioWarning) -> None:
        say(answers, WARNING, *warning)

    unanswered = False
    try:
        for block in stream(source, **options, warn=warn):
            if unanswered and requests.read(1) != GO_ON:
                unanswered = False
                break
            tell(answers, BLOCK, block.astype("<f4", copy=False).tobytes())
            unanswered = True
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever a codec comes up with, it is this file's fault alone
        say(answers, ERROR, *fault(error, f"{source}: " if isinstance(source, str) else ""))
    tell(answers, END)
    if unanswered:
        requests.read(1)


def fault(error: Exception, name: str) -> tuple[str, str]:
    """Its code and message."""
    match error:
        case AudioError():
            return error.code, str(error)
        case MemoryError():
            return "undecodable", f"{name}decoding it takes more memory than is allowed"
        case OSError():
            return UNREADABLE, f"{name}{error.strerror or error}"
    return "undecodable", f"{name}{type(error).__name__}: {error}"


def say(answers: BinaryIO, kind: bytes, code: str, message: str) -> None:
    tell(answers, kind, f"{code}\n{message}".encode(errors="surrogateescape"))


def tell(answers: BinaryIO, kind: bytes, body: bytes = b"") -> None:
    data = memoryview(HEAD.pack(kind, len(body)) + body)
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    main()
