"""Audio while it is being said: 16-bit PCM in over a WebSocket, text and events out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, WebSocket
from pydantic import BeforeValidator, Field
from starlette.websockets import WebSocketDisconnect, WebSocketState

from service.batcher import Stopped
from service.edge.connections import Pace, stalled
from service.errors import ServiceError, bad_request, failed_midway, overloaded
from service.models.engine import Engine
from service.models.model import Model
from service.record import current
from service.stream.live import Live
from service.v1.answering import sounds_of
from service.v1.json_reader import json_object
from service.v1.partial_text import Settling
from service.v1.requests import once
from service.v1.schemas import Usage
from service.v1.schemas_audio import AudioOptions, Labelling, listed
from service.v1.transcripts import words_of
from speech_ssl.audio import resampler
from speech_ssl.inference.answers import Choice
from speech_ssl.types import SAMPLE_RATE, Waveform

router = APIRouter()

PARTIAL_S, PARTIAL_PART = 1.0, 0.15
"""A partial answer comes after so much new audio, or this part of what it has to go through again."""
AGAIN_PART = 0.5
"""Of the time for an answer, to hear again what was heard before the clip's level was known."""
MAX_TEXT = 1_024
"""Characters of a text message: few enough to be read in the event loop."""
CLOSE_CODES = {429: 1013, 503: 1013, 504: 1013, 500: 1011}
"""Others: 1008, the client's mistake."""


class StreamOptions(AudioOptions, Labelling):
    """Given in the query."""

    sample_rate: int = Field(default=SAMPLE_RATE, ge=4_000, le=192_000, description="Of the audio, in Hz.")
    tasks: Annotated[list[Literal["transcription", "classification"]], BeforeValidator(listed)] | None = (
        Field(default=None, min_length=1, description="Separated by commas; unset: all that the model can.")
    )
    speech_head: str | None = Field(default=None, description="Which head transcribes.")
    sounds_head: str | None = Field(default=None, description="Which head classifies.")


@router.websocket("/v1/audio/stream")
async def stream(socket: WebSocket) -> None:
    """Binary messages are 16-bit little-endian mono; the text message `{"type": "end"}` ends the clip."""
    engine: Engine = socket.app.state.engine
    await socket.accept()
    try:
        await _served(socket, engine)
    except WebSocketDisconnect:
        current().status = 499
    except Exception as error:
        await _refuse(socket, failed_midway(error))


async def _served(socket: WebSocket, engine: Engine) -> None:
    options = StreamOptions.model_validate(once(socket.query_params.multi_items()))
    engine.check_room()
    if engine.streams > engine.settings.max_streams:
        raise overloaded(1.0)
    timeout_s = engine.settings.request_timeout_s
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(timeout_s):
            model = await stack.enter_async_context(engine.models.serving(options.model))
        told = _Told(socket, engine, model, options)
        ticket = stack.enter_context(model.ticket())
        current().queued(model.card.name, ticket)
        live = stack.enter_context(closing(Live(engine, model, ticket, told.wanted)))
        await told.send("ready", model=model.card.name, sample_rate=options.sample_rate)
        async with asyncio.timeout(None) as limit:
            await _all(
                _listen(socket, live, options, engine),
                _limited(live, limit, timeout_s),
                engine.stopping.wait(),
                until=told.tell(live),
            )
            if engine.stopping.is_set():
                raise Stopped
    await socket.close()


async def _all(*works: Coroutine[Any, Any, Any], until: Coroutine[Any, Any, Any]) -> None:
    """At once, until that one or the service ends. Raises what the first to fail raises."""
    *beside, stopping, told = [asyncio.create_task(work) for work in (*works, until)]
    waiting = {*beside, stopping, told}
    try:
        while not (told.done() or stopping.done()):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (*beside, stopping, told):
            task.cancel()
        await asyncio.gather(*beside, stopping, told, return_exceptions=True)


async def _limited(live: Live, limit: asyncio.Timeout, timeout_s: float) -> None:
    """From the end of the audio on there is a deadline, as for other requests."""
    await live.heard_out.wait()
    limit.reschedule(asyncio.get_running_loop().time() + timeout_s)


async def _listen(socket: WebSocket, live: Live, options: StreamOptions, engine: Engine) -> None:
    """Until the client leaves. Raises ServiceError, WebSocketDisconnect, and as `Live.add`."""
    convert = _converter(options.sample_rate)
    pace = Pace(engine.settings.min_upload_rate, engine.settings.upload_idle_timeout_s)
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if live.ended else pace.left_s):
                message = await socket.receive()
        except TimeoutError as error:
            raise stalled(engine.settings) from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        data = message.get("bytes")
        pace.moved(len(data or b""), time.monotonic() - began)
        if live.ended:
            raise bad_request("the clip has been ended", code="malformed_message")
        if data is None:
            _check_end(message.get("text") or "")
            if len(rest := convert(b"", True)):
                live.add(rest)
            live.end()
        elif not data or len(data) % 2:
            raise bad_request("a binary message has whole samples of 16 bits", code="malformed_pcm")
        elif len(wave := convert(data, False)):
            live.add(wave)


def _check_end(text: str) -> None:
    wrong = bad_request('the one text message is {"type": "end"}; audio is binary', code="malformed_message")
    if len(text) > MAX_TEXT:
        raise wrong
    try:
        message = json_object(text.encode())
    except (ServiceError, UnicodeEncodeError) as error:
        raise wrong from error
    if message != {"type": "end"}:
        raise wrong


def _converter(rate: int) -> Callable[[bytes, bool], Waveform]:
    """From a message, and whether it is the last, to samples at 16 kHz, as a file of the same is read."""
    resample = None if rate == SAMPLE_RATE else resampler(rate)

    def convert(data: bytes, last: bool) -> Waveform:
        wave = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        if resample is None:
            return wave
        resampled: Waveform = resample.resample_chunk(wave, last=last)
        return resampled

    return convert


class _Told:
    """What the client is told, in order."""

    def __init__(self, socket: WebSocket, engine: Engine, model: Model, options: StreamOptions) -> None:
        self._socket, self._engine, self._model = socket, engine, model
        can = [task for task in model.card.tasks if task != "embedding"]
        self.wanted = model.card.choose(
            options.tasks or can or ["classification"],
            speech_head=options.speech_head,
            sounds_head=options.sounds_head,
            choice=Choice(options.top_k, options.threshold),
        )
        speech = self.wanted.speech
        self._settling = None if speech is None else Settling(engine, model.answering, speech)

    async def send(self, kind: str, **fields: Any) -> None:
        async with asyncio.timeout(self._engine.settings.answer_idle_timeout_s):
            await self._socket.send_text(json.dumps({"type": kind} | fields))

    async def tell(self, live: Live) -> None:
        """Deltas and partial answers as the audio comes in, the final answer when it has ended."""
        partial_at = 0.0
        while True:
            live.changed.clear()
            while live.running:
                part = await live.next_part()
                await self._delta(live, part)
            if live.ended:
                break
            if live.seconds >= partial_at:
                await self._partial(live)
                partial_at = live.seconds + max(PARTIAL_S, PARTIAL_PART * live.waiting_s)
            else:
                await live.changed.wait()
        await self._final(live)

    async def _delta(self, live: Live, part: Any) -> None:
        if self._settling is not None:
            last = live.ended and not live.running
            if text := (await self._settling.more(part, live.seconds, last=last)).text:
                await self.send("delta", text=text)

    async def _partial(self, live: Live) -> None:
        seconds = live.seconds
        fields: dict[str, Any] = {}
        parts = await live.tentative()
        if parts is None:
            return
        if self._settling is not None:
            fields["text"] = await self._settling.rest(parts, seconds)
        if self.wanted.sounds is not None:
            whole, wanted = live.with_rest(parts, seconds), replace(self.wanted, speech=None)
            _, heard = await self._engine.aside(partial(self._model.answering.heard, whole, wanted))
            assert heard is not None
            fields |= sounds_of(heard).model_dump()
        await self.send("partial", seconds=seconds, **fields)

    async def _final(self, live: Live) -> None:
        whole = await live.whole(AGAIN_PART * self._engine.settings.request_timeout_s)
        said, heard = await self._engine.aside(partial(self._model.answering.heard, whole, self.wanted))
        fields: dict[str, Any] = {}
        if said is not None:
            fields |= {"text": said.text, "words": [word.model_dump() for word in words_of(said.words)]}
        if heard is not None:
            fields |= sounds_of(heard).model_dump()
        usage = Usage(seconds=round(live.seconds, 6)).model_dump()
        current().audio_s = live.seconds
        await self.send("final", model=self._model.card.name, usage=usage, **fields)


async def _refuse(socket: WebSocket, error: ServiceError) -> None:
    if socket.application_state is not WebSocketState.CONNECTED:
        return
    try:
        async with asyncio.timeout(1.0):
            await socket.send_text(json.dumps({"type": "error"} | json.loads(error.body())))
            await socket.close(CLOSE_CODES.get(error.status, 1008), error.code)
    except (RuntimeError, WebSocketDisconnect, TimeoutError, OSError):
        return  # the client has left
