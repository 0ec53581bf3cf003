"""Text of a clip as it becomes certain, window by window."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from service.models.engine import Engine
from service.v1 import transcripts
from service.v1.schemas_audio import Logprob
from speech_ssl.inference.answering import Answering
from speech_ssl.inference.answers import Transcript
from speech_ssl.inference.outputs import ClipOutput, WindowOutput


class Delta(NamedTuple):
    """What is new of a text; joined, the tokens are it."""

    text: str = ""
    tokens: list[Logprob] = []


class Settling:
    """All words but the last are certain, with which the next window may go on. `told`, the pieces joined, is
    the text of the whole clip at its end."""

    def __init__(self, engine: Engine, answering: Answering, head: str) -> None:
        self._engine, self._answering, self._head = engine, answering, head
        self._pending: list[WindowOutput] = []
        self.told = ""

    async def more(self, part: WindowOutput, seconds: float, *, last: bool) -> Delta:
        """What is new, with the next window's outputs; `seconds`: of the clip, as far as it is known."""
        heard = WindowOutput.joined([*self._pending, part])
        frames = len(heard.heads[self._head])
        cut = frames if last else self._answering.settled(ClipOutput(heard, seconds), self._head)
        self._pending = [heard.kept(cut, frames - cut)]
        said = await self._said(heard.kept(0, cut), seconds)
        if not said.text:
            return Delta()
        begun = bool(self.told)
        delta = f" {said.text}" if begun else said.text
        self.told += delta
        return Delta(delta, transcripts.logprobs_of(said.words, begun=begun))

    async def rest(self, parts: list[WindowOutput], seconds: float) -> str:
        """What follows `told` if the clip ended with these."""
        return (await self._said(WindowOutput.joined([*self._pending, *parts]), seconds)).text

    async def _said(self, heard: WindowOutput, seconds: float) -> Transcript:
        work = partial(self._answering.transcript, ClipOutput(heard, seconds), self._head)
        return await self._engine.aside(work)
