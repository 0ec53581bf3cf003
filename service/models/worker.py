"""A model in a process of its own, so that what kills or hangs it does not end the service.

The process is forked from one that has imported all it needs but holds no model: another takes its place
in well under a second, plus the time that loading takes. What it was running when it died is run again by
the batcher, in halves, so that a clip that kills the model is the only one to fail of it.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeAlias

from service.batcher import Again, Away
from service.models.runtime import ModelRuntime
from speech_ssl.inference.card import ModelCard
from speech_ssl.inference.outputs import Layers, WindowOutput
from speech_ssl.sandbox.isolation import keep_imports
from speech_ssl.types import Levels, Waveform

logger = logging.getLogger(__name__)

STABLE_S = 30.0
LONGEST_PAUSE_S = 10.0
"""Between two starts of a process that dies within STABLE_S each time."""
LOAD_TIMEOUT_S = 600.0

PRELOADED = ["speech_ssl.inference.runtime", "service.edge.logs"]
LONGEST_TEMPORARY = 75
"""Bytes: a socket's path may have 107, of which multiprocessing's own folder and file take 32."""
KEPT, GIVEN_BACK = ((-3, 32 << 20), (-1, 1 << 30)), ((-3, 256 << 10),)
"""Of glibc: M_MMAP_THRESHOLD, as high as it goes, or always the same; and M_TRIM_THRESHOLD."""

context = multiprocessing.get_context("forkserver")


class Loaded(ModelRuntime, Protocol):
    def use_threads(self, count: int) -> None: ...


Load: TypeAlias = Callable[[], Loaded]
"""Runs in the process, so that it has to be found there by its name: a function of a module, or a partial."""


class WorkerLost(Again):
    """The model's process died or hung; another one is being started."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Threads:
    """The cores of the machine, shared by all passes that are under way."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._passes = 0
        self._lock = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[int]:
        """So many for one more pass: all of them, if it is the only one."""
        with self._lock:
            self._passes += 1
            passes = self._passes
        try:
            yield max(1, self.count // passes)
        finally:
            with self._lock:
                self._passes -= 1


def preload() -> Threads:
    """Import all that models need, once, in the process that the others are forked from; the threads that
    they share.

    Threads of OpenMP that wait shall sleep, not spin: with decoders and the event loop beside them on the
    same cores, a spinning thread holds up the one that it waits for (LOG.md: 944 ms instead of 36 for a
    clip). Raises ValueError where the temporary folder's path leaves no room for the names of sockets."""
    if len(folder := os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY:
        raise ValueError(
            f"the path of the temporary folder has {len(folder)} bytes, and sockets in it allow "
            f"{LONGEST_TEMPORARY}: set TMPDIR to a shorter one"
        )
    keep_imports()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    context.set_forkserver_preload(PRELOADED)
    return Threads(int(threads) if threads.isdecimal() and int(threads) else cores())


@dataclass(eq=False)
class _Child:
    """A process with its model. The connection ends with the last who holds it."""

    process: BaseProcess
    connection: Connection

    @contextmanager
    def ended_after(self, seconds: float, why: str) -> Iterator[None]:
        """Whoever waits for it, to send or to receive, then sees its end."""

        def end() -> None:
            logger.error("%s more than %g s: its process is ended", why, seconds)
            self.process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Worker:
    """The model in its process, and its card here.

    lost: told of each process that died or hung. timeout_s: of one pass; a process that takes longer is
    ended. threads: what it shares with others. error: why the last process has no successor yet. stale: what
    it was loaded from has become another model, so that there will be none.
    """

    def __init__(
        self, load: Load, *, timeout_s: float, lost: Callable[[], object], threads: Threads | None = None
    ) -> None:
        self._load, self._timeout_s, self._lost = load, timeout_s, lost
        self._threads = threads or Threads(cores())
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._newest: BaseProcess | None = None
        self._keeper: threading.Thread | None = None
        self._told: Callable[[], object] = lambda: None
        self._closed = threading.Event()
        self.error: Exception | None = None
        self.stale = False

    def start(self, changed: Callable[[], object] = lambda: None) -> None:
        """Load the model. changed: told when `running`, `error` or `stale` may be others. Raises ValueError
        or OSError if it cannot be loaded or is closed meanwhile."""
        self._told = changed
        child, self._card = self._loaded()
        self._use(child)
        self._keeper = threading.Thread(
            target=self._keep, args=[child], name=f"keeper of {self._card.name}", daemon=True
        )
        self._keeper.start()

    def card(self) -> ModelCard:
        """Once it is loaded."""
        return self._card

    @property
    def running(self) -> bool:
        return self._child is not None

    @property
    def pid(self) -> int | None:
        return None if self._newest is None else self._newest.pid

    def run_windows(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        """As the runtime's, for one thread at a time. Raises Away if there is no process, WorkerLost if it
        ends meanwhile, and what the model raises as ValueError or RuntimeError."""
        child = self._child
        if child is None:
            raise Away("the model's process is not running")
        try:
            with (
                child.ended_after(self._timeout_s, "the model takes for a batch"),
                self._threads.shared() as threads,
            ):
                child.connection.send((threads, list(waves), list(layers), list(heads), levels))
                answer: list[WindowOutput] | Exception = child.connection.recv()
        except (OSError, EOFError) as error:
            self._drop(child)
            raise WorkerLost("the model's process died") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """In any thread, also while `start` loads."""
        with self._lock:
            self._closed.set()
            self._child = None
            if self._newest is not None:
                self._newest.kill()
        if self._keeper is not None:
            self._keeper.join(10)

    def _loaded(self) -> tuple[_Child, ModelCard]:
        """A new process, with its model. Raises what loading raised, and OSError if it died of it."""
        ours, its = context.Pipe()
        process = context.Process(target=work, args=(its, self._load), name="model", daemon=True)
        with self._lock:
            if self._closed.is_set():
                raise OSError("closed")
            process.start()
            self._newest = process
        its.close()
        child = _Child(process, ours)
        try:
            with child.ended_after(LOAD_TIMEOUT_S, "the model takes to load"):
                first: ModelCard | Exception = ours.recv()
        except (EOFError, OSError):
            process.join()
            first = OSError(f"the model's process died while it loaded (exit status {process.exitcode})")
        if isinstance(first, Exception):
            process.join()
            raise first
        return child, first

    def _use(self, child: _Child) -> None:
        with self._lock:
            if self._closed.is_set():
                child.process.kill()
            else:
                self._child, self.error = child, None
        self._told()

    def _drop(self, child: _Child) -> None:
        """No more is asked of it, and it ends; the keeper does the rest."""
        with self._lock:
            if self._child is child:
                self._child = None
        child.process.kill()
        self._told()

    def _keep(self, child: _Child) -> None:
        """Waits for the process to end, and starts the next."""
        pause_s = 0.0
        while True:
            began = time.monotonic()
            child.process.join()
            self._drop(child)
            if self._closed.is_set():
                return
            logger.error(
                "the process of %s ended (%s): starting another", self._card.name, child.process.exitcode
            )
            self._lost()
            stable = time.monotonic() - began > STABLE_S
            pause_s = 0.0 if stable else min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
            while (fresh := self._restarted(pause_s)) is None and not (self._closed.is_set() or self.stale):
                pause_s = min(2 * max(pause_s, 0.5), LONGEST_PAUSE_S)
            if fresh is None:
                return
            child = fresh

    def _restarted(self, pause_s: float) -> _Child | None:
        """After a pause; None if it is closed, or cannot be loaded."""
        if self._closed.wait(pause_s):
            return None
        try:
            child, card = self._loaded()
        except Exception as error:  # whatever it is, the next try may succeed
            self._failed(error)
            return None
        if card.sha256 != self._card.sha256:
            self.stale = True
            child.process.kill()
            child.process.join()
            self._failed(ValueError("what it was loaded from is another model now"))
            return None
        self._use(child)
        return child

    def _failed(self, error: Exception) -> None:
        if not self._closed.is_set() and str(error) != str(self.error):  # once is enough
            logger.error("%s cannot be loaded again: %s", self._card.name, error)
        self.error = error
        self._told()


def work(connection: Connection, load: Load) -> None:
    """The process: loads a model, and runs what it is sent until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the service, which lets requests finish
    keep_memory()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            loaded = load()
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send(loaded.card())
        while True:
            threads, *asked = connection.recv()
            try:
                loaded.use_threads(threads)
                connection.send(loaded.run_windows(*asked))
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                connection.send(_portable(error))


def keep_memory() -> None:
    """What a pass frees is for the next one: given back to the system and taken again page by page, as glibc
    does by itself, it costs 8 % of the processor's time."""
    _set_malloc(KEPT)


def give_memory_back() -> None:
    """In the service's own process, where audio and answers come and go: what is freed is the system's again,
    and not between what is still held."""
    _set_malloc(GIVEN_BACK)


def _set_malloc(limits: Sequence[tuple[int, int]]) -> None:
    with suppress(OSError, AttributeError):  # of another C library
        mallopt = ctypes.CDLL(None).mallopt
        for limit, size in limits:
            mallopt(limit, size)


def _portable(error: Exception) -> Exception:
    """The same for whoever has other classes than this process."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if isinstance(error, OSError):
        return OSError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
