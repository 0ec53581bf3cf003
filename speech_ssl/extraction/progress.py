"""How far long work is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}{postfix}]"


class ProgressLine:
    """Counts seconds of audio on stderr. The first plain line comes after `every_s`, so that short work
    says nothing."""

    def __init__(self, what: str, total_s: float, *, every_s: float = 5.0) -> None:
        self._what, self._total_s, self._every_s = what, total_s, every_s
        self._started = self._spoke = time.monotonic()
        self.seconds = 0.0
        self.clips = self.failures = 0
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=what, total=total_s, bar_format=_BAR, leave=False)

    def advance(self, seconds: float, *, clips: int = 0, failures: int = 0) -> None:
        self.seconds += seconds
        self.clips += clips
        self.failures += failures
        if self._bar is not None:
            failed = f", {self.failures} failed" if self.failures else ""
            self._bar.set_postfix_str(
                f"{self.clips} clips{failed}, {self.rate:.1f}x real time", refresh=False
            )
            self._bar.update(min(seconds, max(self._total_s - self._bar.n, 0)))
        elif time.monotonic() - self._spoke >= self._every_s:
            self._spoke = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Seconds of audio a second."""
        return self.seconds / max(self.elapsed_s, 1e-9)

    def hide(self) -> None:
        """Make room for a line of output."""
        if self._bar is not None:
            self._bar.clear()

    def say(self, line: str) -> None:
        """A line on stderr, beside the bar."""
        self.hide()
        print(f"{self._what}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        share = min(self.seconds / self._total_s, 1) if self._total_s else 1
        left = max(self._total_s - self.seconds, 0) / self.rate if self.rate else 0
        failed = f", {self.failures} failed" if self.failures else ""
        return (
            f"{self._what}: {share:.0%} of {self._total_s / 60:.1f} min of audio, {self.clips} clips{failed}"
            f", {self.rate:.1f}x real time, {left / 60:.1f} min left"
        )


class Tally:
    """Counts things of which nobody knows how many there will be."""

    def __init__(self, what: str, unit: str, *, every_s: float = 5.0) -> None:
        self._what, self._unit, self._every_s = what, unit, every_s
        self._spoke = time.monotonic()
        self._count = 0
        self._bar = tqdm(desc=what, unit=f" {unit}", leave=False) if sys.stderr.isatty() else None

    def tick(self) -> None:
        self._count += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._spoke >= self._every_s:
            self._spoke = time.monotonic()
            print(f"{self._what}: {self._count} {self._unit}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
