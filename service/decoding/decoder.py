"""The process that decodes: files in on stdin, blocks of samples out on stdout.

`service.decoding.sandbox` starts it and is the only one that speaks with it. It has limits on memory and on
each file's processor time, and may die of a file: nothing else does then.

In:  a line of JSON {"size", "cpu_s", "limits"}, then `size` bytes of a file; then, after each block, one
     byte: "+" to go on, or "-" to leave the rest.
Out: messages of one letter and a length: "R" when it has started; of each file "B" a block (float32), "W" a
     warning and "E" an error (JSON {"code", "message"}), "." the end.
"""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import sys
from typing import BinaryIO

from speech_ssl.audio import AudioError, AudioWarning, Limits, stream

HEAD = struct.Struct("<cI")
STARTED, BLOCK, WARNING, ERROR, END = b"R", b"B", b"W", b"E", b"."
GO_ON, ENOUGH = b"+", b"-"


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
    tell(answers, STARTED, b"")
    while line := requests.readline():
        asked = json.loads(line)
        limit_cpu(asked["cpu_s"])
        data = requests.read(asked["size"])
        if len(data) < asked["size"]:
            return
        answer(data, Limits(**asked["limits"]), requests, answers)


def limit_cpu(seconds: float) -> None:
    """From now on; beyond it the system ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def answer(data: bytes, limits: Limits, requests: BinaryIO, answers: BinaryIO) -> None:
    def warn(warning: AudioWarning) -> None:
        tell(answers, WARNING, json.dumps(warning._asdict()).encode())

    try:
        for block in stream(data, limits=limits, warn=warn):
            tell(answers, BLOCK, block.astype("<f4", copy=False).tobytes())
            if requests.read(1) != GO_ON:
                break
    except AudioError as error:
        tell(answers, ERROR, json.dumps({"code": error.code, "message": str(error)}).encode())
    except MemoryError:
        said = {"code": "undecodable", "message": "decoding it takes more memory than is allowed"}
        tell(answers, ERROR, json.dumps(said).encode())
    tell(answers, END, b"")


def tell(answers: BinaryIO, kind: bytes, body: bytes) -> None:
    data = memoryview(HEAD.pack(kind, len(body)) + body)
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    main()
