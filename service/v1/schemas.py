"""What goes over the wire: options, answers, and their description for /docs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Pooling = Literal["mean", "max", "none"]


class EmbeddingOptions(BaseModel):
    """Given in the query, the form or the JSON body; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="default", description="A name listed by /v1/models, or `default`.")
    layer: int = Field(
        default=-1,
        ge=-1024,
        le=1024,
        description="0: what enters the first block; 1 to N: the output of a block; -1: the last.",
    )
    pooling: Pooling = Field(
        default="mean", description="One vector for the clip, or `none`: one for every frame."
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Lists of numbers, or base64 of little-endian float32, row by row."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="The width of the model's vectors, if given: they are not shortened."
    )
    modality: Literal["audio"] = "audio"
    user: str | None = Field(default=None, description="Ignored; there for clients that send it.")


class EmbeddingRequest(EmbeddingOptions):
    """The JSON form of the request."""

    input: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="A file, or several: data URI or base64."
    )


class AudioWarning(BaseModel):
    """What is wrong with a file that is used all the same, by a code: `truncated`, for one."""

    code: str
    message: str


class Warned(BaseModel):
    warnings: list[AudioWarning] | None = Field(default=None, description="Absent where there are none.")


class Embedding(Warned):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | list[list[float]] | str
    shape: list[int] | None = Field(default=None, description="[frames, width], with pooling `none` only.")


class Usage(BaseModel):
    type: Literal["duration"] = "duration"
    seconds: float


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Head(BaseModel):
    """What the model answers beside vectors."""

    name: str
    task: Literal["transcription", "classification"]
    labels: list[str] | None = Field(default=None, description="Of one that classifies.")


class ModelCard(BaseModel):
    """`layers` and `width`: what `layer` may be at most, and how long a vector is. What is null or empty of a
    model that is not loaded is known once it is: the first request loads it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the service loaded it, Unix time.")
    owned_by: str = "speech-ssl"
    loaded: bool = True
    aliases: list[str] = Field(default=[], description="Further names that it answers to.")
    layers: int | None = None
    width: int | None = None
    sample_rate: int = 16_000
    heads: list[Head] = []


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Error(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(BaseModel):
    error: Error


def _sent(field: dict[str, Any]) -> dict[str, Any]:
    """As a query or a form has it: what is not set is left out, and not null."""
    if "anyOf" not in field:
        return field
    kinds = [kind for kind in field["anyOf"] if kind != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Where it will stand, `#/$defs` is not there."""
    if isinstance(schema, list):
        return [inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


def body_of(options: type[BaseModel], *, several: bool = False) -> dict[str, Any]:
    """FastAPI cannot derive it: the routes read their bodies themselves."""
    schema = options.model_json_schema()
    properties = inlined(schema["properties"], schema.get("$defs", {}))
    fields = {name: _sent(field) for name, field in properties.items()}
    one = {"type": "string", "format": "binary"}
    file = {"type": "array", "items": one, "minItems": 1} if several else one
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": field}
            for name, field in fields.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "audio/*": {"schema": one}},
        },
    }


EMBEDDING_BODY = body_of(EmbeddingOptions, several=True)
EMBEDDING_BODY["requestBody"]["content"]["application/json"] = {
    "schema": EmbeddingRequest.model_json_schema()
}


def as_json(errors: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """For a route that answers in another type, which FastAPI would write down for its errors too."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    return {
        status: {"description": said["description"], "content": content} for status, said in errors.items()
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Malformed request."},
    401: {"description": "No API key, or an unknown one, where they are asked for."},
    403: {"description": "Asked by a page of another site."},
    404: {"description": "Unknown model."},
    408: {"description": "The upload stalled."},
    413: {"description": "Too many bytes."},
    415: {"description": "Unknown audio format or content type."},
    421: {"description": "Asked by a name that is not the service's."},
    422: {"description": "Undecodable, too long or too short."},
    429: {"description": "Too much audio is queued; see Retry-After."},
    503: {"description": "Loading or draining."},
    504: {"description": "No answer in time."},
}
for _error in ERRORS.values():
    _error["model"] = ErrorBody
