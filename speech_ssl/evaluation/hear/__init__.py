"""HEAR's common API (Turian et al. 2022, arXiv 2203.03022; hearbenchmark.com/hear-api.html), for heareval and
whatever else takes such a module: `heareval ... speech_ssl.evaluation.hear --model default`."""

from speech_ssl.evaluation.hear.api import (
    HearModel,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
