"""A model in a process of its own, so that what kills or hangs it does not end the service.

The process is forked from one that has imported all it needs but holds no model: another takes its place
in well under a second, plus the time that loading takes. What it was running when it died is run again by
the batcher, in halves, so that a clip that kills the model is the only one to fail of it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeAlias

from service.batcher import Again
from speech_ssl.inference.card import Card
from speech_ssl.inference.engines import Passed
from speech_ssl.types import Waveform

logger = logging.getLogger(__name__)

STABLE_S = 30.0
LONGEST_PAUSE_S = 30.0
"""Between two starts of a process that dies within STABLE_S each time."""
RESTART_S = 15.0
"""A batch waits so long for the next process."""

context = multiprocessing.get_context("forkserver")


class Loaded(Protocol):
    def card(self) -> Card: ...
    def run_windows(
        self, waves: Sequence[Waveform], layers: Sequence[int | None], heads: Sequence[str] = ()
    ) -> list[Passed]: ...


Load: TypeAlias = Callable[[], Loaded]
"""Runs in the process, so that it has to be found there by its name: a function of a module, or a partial."""


class WorkerLost(Again):
    """The model's process died or hung; another one is being started."""


def preload() -> None:
    """Import all that models need, once, in the process that the others are forked from.

    Threads of OpenMP that wait shall sleep, not spin: with decoders and the event loop beside them on the
    same cores, a spinning thread holds up the one that it waits for (LOG.md: 944 ms instead of 36 for a
    clip)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context.set_forkserver_preload(["speech_ssl.inference.runtime"])


class Worker(Card):
    """The model in its process: what is asked of it alone is answered here, the rest there.

    Raises ValueError or OSError if it cannot be loaded. lost: told of each process that died or hung.
    timeout_s: of one pass; a process that takes longer is ended.
    """

    def __init__(self, load: Load, *, timeout_s: float, lost: Callable[[], object]) -> None:
        self._load, self._timeout_s, self._lost = load, timeout_s, lost
        self._changed = threading.Condition()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._closed = False
        card = self._start()
        super().__init__(**{field.name: getattr(card, field.name) for field in fields(Card)})
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {self.name}", daemon=True)
        self._keeper.start()

    @property
    def running(self) -> bool:
        return self._connection is not None

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def run_windows(
        self, waves: Sequence[Waveform], layers: Sequence[int | None], heads: Sequence[str] = ()
    ) -> list[Passed]:
        """As the runtime's, for one thread at a time. Raises WorkerLost, and what the model raises as
        ValueError or RuntimeError."""
        with self._changed:
            self._changed.wait_for(lambda: self._connection or self._closed, RESTART_S)
            connection = self._connection
        if connection is None:
            raise WorkerLost("the model's process is not running")
        try:
            connection.send((list(waves), list(layers), list(heads)))
            if not connection.poll(self._timeout_s):
                logger.error("the model takes more than %g s for a batch and is ended", self._timeout_s)
                self._end(connection)
                raise WorkerLost("the model took too long")
            answer: list[Passed] | Exception = connection.recv()
        except (OSError, EOFError) as error:
            self._end(connection)
            raise WorkerLost("the model's process died") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        with self._changed:
            self._closed = True
            connection = self._connection
            self._changed.notify_all()
        if connection is not None:
            self._end(connection)
        self._keeper.join(10)

    def _start(self) -> Card:
        """A new process, with its model. Raises what loading raised, and OSError if it died of it."""
        ours, its = context.Pipe()
        process = context.Process(target=work, args=(its, self._load), name="model", daemon=True)
        process.start()
        its.close()
        try:
            first: Card | Exception = ours.recv()
        except (EOFError, OSError):
            process.join()
            first = OSError(f"the model's process died while it loaded (exit status {process.exitcode})")
        if isinstance(first, Exception):
            ours.close()
            process.join()
            raise first
        with self._changed:
            self._process, self._connection = process, ours
            self._changed.notify_all()
        return first

    def _end(self, connection: Connection) -> None:
        """Of this connection and its process; the keeper does the rest."""
        with self._changed:
            if self._connection is connection:
                self._connection = None
            process = self._process
        connection.close()
        if process is not None:
            process.kill()

    def _keep(self) -> None:
        """Waits for the process to end, and starts the next."""
        pause_s = 0.0
        while True:
            began = time.monotonic()
            assert self._process is not None
            self._process.join()
            with self._changed:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                if self._closed:
                    return
            logger.error("the process of %s ended (%s): starting another", self.name, self._process.exitcode)
            self._lost()
            pause_s = (
                0.0 if time.monotonic() - began > STABLE_S else min(max(2 * pause_s, 0.1), LONGEST_PAUSE_S)
            )
            while not self._restarted(pause_s):
                pause_s = min(2 * max(pause_s, 0.5), LONGEST_PAUSE_S)
            if self._closed:
                self._process.kill()
                return

    def _restarted(self, pause_s: float) -> bool:
        """After a pause; true also when it is closed."""
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, pause_s):
                return True
        try:
            self._start()
        except (ValueError, OSError) as error:
            logger.error("%s cannot be loaded again: %s", self.name, error)
            return False
        return True


def work(connection: Connection, load: Load) -> None:
    """The process: loads a model, and runs what it is sent until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the service, which lets requests finish
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            loaded = load()
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send(loaded.card())
        while True:
            waves, layers, heads = connection.recv()
            try:
                connection.send(loaded.run_windows(waves, layers, heads))
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                connection.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """The same for whoever has other classes than this process."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if isinstance(error, OSError):
        return OSError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
