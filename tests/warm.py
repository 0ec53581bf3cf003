"""Processes that begin with PyTorch imported, which takes seconds: forked from one that has it and waits.

They are real ones, with their own id, environment and working directory, and can be killed. All the processes
of a test run share the one that waits; it ends with the last of them.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
# Not what reads the environment when it is imported, as huggingface_hub does.
PRELOADED = (
    "numpy",
    "safetensors.torch",
    "soundfile",
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.optim",
    "tqdm",
)
START_S = 120.0


class Popen:
    """`python -m` with these arguments, as `subprocess.Popen` has it."""

    def __init__(
        self,
        args: Sequence[object],
        *,
        stdout: IO[Any],
        stderr: IO[Any],
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
    ) -> None:
        self.args = [str(arg) for arg in args]
        self.returncode: int | None = None
        asked = {"args": self.args, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
        _waiting()
        self._line = _connected()
        socket.send_fds(self._line, [json.dumps(asked).encode()], [stdout.fileno(), stderr.fileno()])
        self.pid = int(self._line.recv(64))

    def poll(self) -> int | None:
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._line.settimeout(timeout if timeout is None else max(timeout, 1e-6))
            try:
                self.returncode = int(self._line.recv(64) or -signal.SIGKILL)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    args: Sequence[object], *, timeout: float | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with `capture_output` and `text`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Popen(args, stdout=out, stderr=err, **how)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, process.wait(), out.read(), err.read())


def _address() -> str:
    """Of this test run."""
    return f"\0speech-ssl-warm-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"


def _connected() -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        line.connect(_address())
    except BaseException:
        line.close()
        raise
    return line


@functools.cache
def _waiting() -> int:
    """The one that waits is there, and stays for as long as this descriptor is open: to the end."""
    command = [sys.executable, __file__, _address()[1:]]
    started = 0
    deadline = time.monotonic() + START_S
    while True:
        with suppress(ConnectionRefusedError):
            return _connected().detach()
        if not started or os.waitpid(started, os.WNOHANG)[0]:  # another was there
            started = os.posix_spawn(sys.executable, command, os.environ, setsid=True)
        assert time.monotonic() < deadline, "the process that waits did not start"
        time.sleep(0.05)


def serve(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{address}")
    except OSError:
        return  # another is there
    listener.listen(64)
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    lines = selectors.DefaultSelector()
    lines.register(listener, selectors.EVENT_READ)
    ends: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in lines.select():
            if key.fileobj is listener:
                lines.register(listener.accept()[0], selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                line = key.fileobj
                if not (pid := _begun(line, listener)):
                    lines.unregister(line)
                    line.close()
                else:
                    end = os.pidfd_open(pid)
                    ends[end] = pid, line
                    lines.register(end, selectors.EVENT_READ)
            else:
                pid, line = ends.pop(end := key.fd)
                lines.unregister(end)
                os.close(end)
                code = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()
                with suppress(OSError):  # nobody waits for it
                    line.send(code)
        if len(lines.get_map()) == 1:
            return


def _begun(line: socket.socket, listener: socket.socket) -> int:
    """The id of the process that was asked for; 0 if it was the end of the connection."""
    try:
        message, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 2)
    except ConnectionResetError:
        return 0
    if not message:
        return 0
    if (pid := os.fork()) == 0:
        listener.close()
        _become(json.loads(message), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    line.send(str(pid).encode())
    return pid


def _become(asked: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """What Python does at its start and its end, around the module that was asked for."""
    code = 1
    try:
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.stdout.reconfigure(write_through=bool(asked["env"].get("PYTHONUNBUFFERED")))
        sys.stderr.reconfigure(line_buffering=True)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.argv = list(asked["args"])
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
