"""All that can be configured, from the environment (`SPEECH_SSL_*`) or a TOML file named by it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "SPEECH_SSL_"
FILE_VARIABLE = PREFIX + "SETTINGS_FILE"
MIB = 1 << 20
DAY_S, CENTURY_S = 86_400, 36_525 * 86_400
"""The most of what a process waits for, which the system counts in milliseconds, and of what it looks up."""


Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


class ModelSettings(BaseModel):
    """A further model. Its device and precision are those of the first one, if they are not set."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str = Field(description="As `model`: `default`, a folder, or OWNER/NAME.")
    device: str | None = None
    precision: Precision | None = None
    preload: bool = Field(default=False, description="Loaded at the start, not with the first request.")
    unload_after_s: float | None = Field(
        default=None, gt=0, le=CENTURY_S, description="Let go after so long without a request."
    )

    @model_validator(mode="after")
    def _one_or_the_other(self) -> ModelSettings:
        if self.preload and self.unload_after_s is not None:
            raise ValueError("a model that is preloaded stays: leave out preload or unload_after_s")
        return self


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name == "default":
        raise ValueError(
            "a name has 1 to 64 letters, digits, dots, dashes, underscores, and is not `default`"
        )
    return name


def _alias(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:/-]{1,128}", name) or name == "default":
        raise ValueError(
            "an alias has 1 to 128 letters, digits, dots, dashes, underscores, colons, slashes, and is not "
            "`default`"
        )
    return name


ALIASES = ("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
"""What clients of OpenAI's transcriptions have written into them."""


class Settings(BaseSettings):
    """Arguments go before the environment, that before the file named by SPEECH_SSL_SETTINGS_FILE.

    Raises pydantic's ValidationError, a ValueError, for a bad value or a name in the file that is unknown.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(
        default="default",
        description="Model to serve: `default`, a folder of an artifact or of transformers, or OWNER/NAME of "
        "the Hugging Face hub.",
    )
    device: str = Field(
        default="auto",
        description="Where it runs: `cpu`, `cuda`, `cuda:1`, or `auto`, the first GPU if there is one.",
    )
    precision: Precision = Field(
        default="auto",
        description="Arithmetic of the model: `fp32`, `bf16`, `fp16`, `int8` (on the CPU), or `auto`, what "
        "the device computes natively.",
    )
    models: dict[Annotated[str, AfterValidator(_model_name)], ModelSettings] = Field(
        default={},
        description="Further models by name, as a JSON object: `source`, and if wanted `device`, "
        "`precision`, `preload`, `unload_after_s`.",
    )
    aliases: dict[Annotated[str, AfterValidator(_alias)], str] = Field(
        default=dict.fromkeys(ALIASES, "default"),
        description="Further names of models, as a JSON object: `default` or a name of `models` for each. "
        "`{}`: none. A model's own name goes before an alias.",
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="Copies of each model, each in its own process, that share the cores. Unset: 2 on the"
        " CPU, if it has that many cores, and 1 on a GPU.",
    )
    batch_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=DAY_S,
        description="Time for one batch; if it takes longer, the model's process is replaced.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: str | None = Field(
        default=None,
        description="Host names that it answers to, separated by commas: `asr.example.org`, "
        "`*.example.org`, `*` for any. Unset: addresses, single-part names, and names that "
        "nobody can register, such as `localhost` and `.local`; with API keys any.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged; requests are `info`, probes and `/metrics` are `debug`."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="A line of the log: `text`, or `json`, an object with the same fields."
    )

    v2_errors: Literal["object", "string"] = Field(
        default="object",
        description="Errors of `/v2`: `object`, as of all routes, or `string`, as in the Open Inference "
        "Protocol, for clients that read no other.",
    )

    api_keys: Path | None = Field(
        default=None,
        description="File of API keys, a name and a hash on each line (`python -m service.auth NAME` "
        "makes one). If set, every route except the probes needs a key.",
    )

    public_page: bool = Field(
        default=False,
        description="With keys: the playground page is shown without one and asks for it itself. "
        "Otherwise the browser asks: any name, and the key as the password.",
    )
    key_max_requests: int | None = Field(
        default=None, ge=1, description="POST requests of one key being served at a time; above: 429."
    )
    key_max_streams: int | None = Field(
        default=None, ge=1, description="Live streams of one key at a time; above: 429."
    )
    key_max_queue_s: float | None = Field(
        default=None, gt=0, description="Seconds of audio in the requests of one key; above: 429."
    )

    key_max_jobs: int | None = Field(
        default=None,
        ge=1,
        description="Jobs of one key being uploaded, waiting and running; above: 429. Unset: half of "
        "`max_jobs`.",
    )
    key_max_result_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of results of one key's jobs; above: 507. Unset: half of `max_result_bytes`.",
    )

    max_body_bytes: int = Field(
        default=64 * MIB, ge=1, description="Bytes of one request's body; above: 413."
    )
    max_json_bytes: int = Field(
        default=16 * MIB,
        ge=1,
        description="Bytes of a body that is JSON, with audio as base64 or numbers in it; above: 413.",
    )
    max_pending_bytes: int = Field(
        default=256 * MIB, ge=1, description="Bytes of all bodies held at a time; above: 429."
    )
    max_answer_bytes: int = Field(
        default=512 * MIB,
        ge=1,
        description="Bytes of model outputs for all requests and streams, and of answers being sent; "
        "above: 429, or 422 for one request.",
    )
    max_requests: int = Field(
        default=256, ge=1, description="POST requests being served at a time; above: 429."
    )
    max_streams: int = Field(
        default=64,
        ge=1,
        description="Live streams at a time, in addition to the requests; above: `overloaded`.",
    )
    max_files: int = Field(default=64, ge=1, description="Files in one request; above: 400.")

    max_clip_s: float = Field(default=3600.0, gt=0, description="Seconds of one file, decoded; above: 422.")
    max_frames_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds of one request with `pooling=none`; above: 422.",
    )
    max_channels: int = Field(default=16, ge=1, description="Channels of a file; above: 422.")
    min_rate: int = Field(default=4_000, ge=1, description="Lowest sample rate in Hz; below: 422.")
    max_rate: int = Field(default=192_000, ge=1, description="Highest sample rate in Hz; above: 422.")
    decode_threads: int = Field(default=2, ge=1, description="Files decoded at a time.")
    decode_memory_bytes: int = Field(
        default=1024 * MIB,
        ge=256 * MIB,
        le=1 << 50,
        description="Address space of a process that decodes; above: 422.",
    )
    decode_timeout_s: float = Field(
        default=60.0, gt=0, le=DAY_S, description="Time and processor time for decoding one file; above: 422."
    )

    max_queue_s: float = Field(
        default=7200.0,
        gt=0,
        description="Seconds of audio waiting and running; above: 429, or 422 for one request.",
    )
    max_batch_s: float | None = Field(
        default=None,
        gt=0,
        description="Padded seconds of audio in one batch, at least one window of the model. "
        "Unset: as the model suggests for its device.",
    )
    max_padding: float = Field(
        default=0.25, ge=0, lt=1, description="Largest part of a batch that is padding."
    )

    request_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=DAY_S,
        description="From a request's last byte to its answer; above: 504. A request may ask for less with "
        "`X-Request-Timeout`, in seconds.",
    )
    head_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=DAY_S,
        description="From a connection, or the end of the previous answer, to the end of a request's "
        "head; above: 408 if the head has begun, and the connection is closed.",
    )
    min_upload_rate: int = Field(
        default=1_000,
        ge=1,
        description="Minimum rate of a body and of a live stream, in bytes a second; below, for "
        "`upload_idle_timeout_s`: 408.",
    )
    upload_idle_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=DAY_S,
        description="How long a client may send less than `min_upload_rate`, and so its longest pause; "
        "above: 408.",
    )
    min_answer_rate: int = Field(
        default=4_000,
        ge=1,
        description="Minimum rate at which an answer is read, in bytes a second; below, for "
        "`answer_idle_timeout_s`: disconnected.",
    )
    answer_idle_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=DAY_S,
        description="How long a client may read less than `min_answer_rate`, and so its longest pause; "
        "above: disconnected.",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=DAY_S, description="After SIGTERM, how long requests may take to finish."
    )

    jobs_dir: Path | None = Field(
        default=None,
        description="Folder in which jobs are kept, for one process at a time. Unset: there is no "
        "`/v1/jobs`.",
    )
    max_jobs: int = Field(
        default=100, ge=1, description="Jobs being uploaded, waiting and running; above: 429."
    )
    max_job_files: int = Field(default=1000, ge=1, description="Files of one job; above: 400.")
    max_job_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Bytes of one job, instead of those of a body; above: 413."
    )
    max_result_bytes: int = Field(
        default=8192 * MIB,
        ge=1,
        description="Bytes of the results of all jobs; above: 507, for new jobs and for files that are "
        "still to be run.",
    )
    job_workers: int = Field(
        default=1, ge=1, description="Files of jobs that run at a time, each of another job."
    )
    job_keep_s: float = Field(
        default=7 * 86400.0,
        gt=0,
        le=CENTURY_S,
        description="From a job's end until it is deleted with its results.",
    )

    @field_validator("aliases")
    @classmethod
    def _of_models(cls, aliases: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        names = ["default", *info.data.get("models", {})]
        for alias, name in aliases.items():
            if name not in names:
                raise ValueError(f"{alias} is to be {name}, which is no model: there is {', '.join(names)}")
        return aliases

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(FILE_VARIABLE)
        if not file:
            return init_settings, env_settings
        if not Path(file).is_file():
            raise ValueError(f"{FILE_VARIABLE}: there is no file {file}")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(file))
