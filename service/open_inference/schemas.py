"""What goes over the wire by the Open Inference Protocol, version 2."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

import speech_ssl
from service.v1.json_reader import Numbers
from service.v1.schemas import inlined

VERSION = "1"
AUDIO = "audio"
MAX_TEXT = 1_024
OutputName: TypeAlias = Literal["embedding", "frames", "transcription", "classification"]
Datatype: TypeAlias = Literal["BYTES", "FP32"]


def _check_list(value: Any) -> Any:
    if not isinstance(value, list | Numbers):
        raise PydanticCustomError("list_type", "Input should be a valid list")
    return value


Data: TypeAlias = Annotated[
    Any,  # as `json_reader` gives it: a long list of numbers is Numbers
    AfterValidator(_check_list),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "number"},
                    {"type": "array", "items": {"type": "number"}},
                ]
            },
        }
    ),
]


def _refuse_binary() -> PydanticCustomError:
    return PydanticCustomError(
        "binary_data", "binary tensor data is an extension that is not served: data is JSON, both ways"
    )


def _check_not_binary(value: bool) -> bool:
    if value:
        raise _refuse_binary()
    return value


NotBinary: TypeAlias = Annotated[
    StrictBool, AfterValidator(_check_not_binary), WithJsonSchema({"type": "boolean", "const": False})
]
Size: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**64)]


def _check_short(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise PydanticCustomError("string_too_long", f"a text of more than {MAX_TEXT} characters")
    return text


Short: TypeAlias = Annotated[
    str, AfterValidator(_check_short), WithJsonSchema({"type": "string", "maxLength": MAX_TEXT})
]
"""What comes back to the client. Not by `max_length`, which refuses half of a surrogate pair."""


class _Sent(BaseModel):
    """What is not known is refused: it would change nothing, and the client believes that it does."""

    model_config = ConfigDict(extra="forbid")


ContentType: TypeAlias = Annotated[
    Literal["np", "str", "base64"],
    Field(description="As MLServer's clients send it. The datatype already says so: it changes nothing."),
]


class InputParameters(_Sent):
    content_type: ContentType | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_binary_data(cls, value: Any) -> Any:
        if isinstance(value, dict) and "binary_data_size" in value:
            raise _refuse_binary()
        return value


class InputTensor(_Sent):
    """BYTES [n]: n files, each a base64 string. FP32 [samples] or [n, samples]: mono at 16 kHz."""

    name: Literal["audio"]
    shape: list[Size] = Field(min_length=1, max_length=2)
    datatype: Datatype
    parameters: InputParameters | None = None
    data: Data = Field(description="Row by row: flat, or nested as the shape is.")

    @model_validator(mode="after")
    def _is_what_it_says(self) -> InputTensor:
        said = self.parameters and self.parameters.content_type
        if self.datatype == "FP32" and said in ("str", "base64"):
            raise PydanticCustomError("content_type", "FP32 is numbers, whose content_type is np")
        return self


class OutputParameters(_Sent):
    content_type: ContentType | None = None
    binary_data: NotBinary = False


class RequestedOutput(_Sent):
    name: OutputName
    parameters: OutputParameters | None = None


class InferParameters(_Sent):
    content_type: ContentType | None = None
    layer: int = Field(
        default=-1, ge=-1024, le=1024, strict=True, description="Of `embedding` and `frames`, as elsewhere."
    )
    pooling: Literal["mean", "max"] = Field(default="mean", description="Of `embedding`.")
    speech_head: Short | None = Field(default=None, description="Which head transcribes.")
    sounds_head: Short | None = Field(default=None, description="Which head classifies.")
    binary_data_output: NotBinary = False


class InferRequest(_Sent):
    id: Short | None = Field(default=None, description="Comes back with the answer.")
    parameters: InferParameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(
        default=None, description="Unset or empty: all that the model can, but `frames`."
    )


class OutputTensor(BaseModel):
    """embedding: FP32 [n, width]. frames: FP32 [frames, width], of one clip. transcription: BYTES [n].
    classification: FP32 [n, labels], probabilities."""

    name: OutputName
    shape: list[int]
    datatype: Datatype
    data: list[float] | list[str] = Field(description="Row by row, flat.")


class ResponseParameters(BaseModel):
    warnings: str = Field(description="What is wrong with files that are used all the same, a line each.")


class InferResponse(BaseModel):
    model_name: str
    model_version: Literal["1"]
    id: str | None = Field(default=None, description="That of the request, if it had one.")
    parameters: ResponseParameters | None = Field(default=None, description="Absent without warnings.")
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    name: str = "speech-ssl"
    version: str = speech_ssl.__version__
    extensions: list[str] = []


class Live(BaseModel):
    live: Literal[True] = True


class Ready(BaseModel):
    ready: Literal[True] = True


class ModelReady(BaseModel):
    name: str
    ready: Literal[True] = True


class TensorParameters(BaseModel):
    labels: list[str] = Field(description="What the columns stand for, with the model's first sounds head.")


class TensorMetadata(BaseModel):
    """shape: -1 where it is not always the same."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: TensorParameters | None = None


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = [VERSION]
    platform: str = "speech_ssl"
    inputs: list[TensorMetadata] = [TensorMetadata(name=AUDIO, datatype="BYTES", shape=[-1])]
    outputs: list[TensorMetadata]


_SCHEMA = InferRequest.model_json_schema()
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inlined(_SCHEMA, _SCHEMA["$defs"])}},
    }
}
