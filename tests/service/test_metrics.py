"""That the metrics count what happened, and that they are those which docs/observability.md describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.service.fakes import FakeRuntime
from tests.service.support import ROOT, encoded, serving, tone

URL = "/v1/embeddings"


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service that answered two clips of 1.5 s, one with a warning, and one of 6 s, and refused a file."""
    with serving(FakeRuntime(slowness=0.01), jobs_dir=tmp_path_factory.mktemp("jobs")) as client:
        opposite = np.stack([tone(1.5), -tone(1.5)], axis=1)
        two = [("file", ("a.wav", encoded(tone(1.5)))), ("file", ("b.wav", encoded(opposite)))]
        assert client.post(URL, files=two).status_code == 200
        assert client.post(URL, files={"file": encoded(tone(6.0))}).status_code == 200
        assert client.post(URL, files={"file": b"no audio"}).status_code == 415
        yield client


def samples(client: httpx.Client) -> list[Sample]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def value(client: httpx.Client, name: str, **labels: str) -> float:
    (found,) = [s.value for s in samples(client) if (s.name, s.labels) == (f"speech_ssl_{name}", labels)]
    return found


def test_they_count_what_happened(used):
    assert value(used, "requests_total", route=URL, outcome="200") == 2
    assert value(used, "requests_total", route=URL, outcome="415") == 1
    assert value(used, "request_seconds_count", route=URL) == 3
    assert value(used, "served_audio_seconds_total", route=URL) == 9.0
    assert value(used, "decode_seconds_count") == 4
    assert value(used, "decode_failures_total", code="unsupported_format") == 1
    assert value(used, "decode_warnings_total", code="opposite_phase") == 1
    assert value(used, "queued_audio_seconds") == 0
    run = value(used, "audio_seconds_total")
    assert run > 9.0  # the long one's windows overlap
    assert value(used, "batch_audio_seconds_sum") == pytest.approx(run)
    assert value(used, "batch_windows_sum") == value(used, "wait_seconds_count") == 4
    assert value(used, "batch_windows_count") == value(used, "run_seconds_count")
    assert value(used, "run_seconds_sum") >= 0.01 * run
    assert 0 <= value(used, "batch_padding_ratio_sum") < 1


def test_they_are_those_that_are_documented(used):
    rows = re.findall(
        r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?)\| .* \|$",
        (ROOT / "docs" / "observability.md").read_text(),
        re.MULTILINE,
    )
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    found = {}
    for family in text_string_to_metric_families(used.get("/metrics").text):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
        assert family.documentation
    assert found == documented


def test_names_follow_the_conventions(used):
    for family in text_string_to_metric_families(used.get("/metrics").text):
        assert re.fullmatch(r"(speech_ssl|process)_[a-z_]+", family.name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mib|percent)$", family.name)


def test_a_route_is_its_whole_template(tmp_path: Path) -> None:
    """Of all that are described; what was asked is in no label."""
    with serving(FakeRuntime(), jobs_dir=tmp_path) as client:
        described = client.get("/openapi.json").json()["paths"]
        for path, operations in described.items():
            for method in operations:
                client.request(method, path.format(model="asked", version="1", id="asked"))
        routes = {s.labels["route"] for s in samples(client) if s.name == "speech_ssl_requests_total"}
    assert routes - {"unmatched"} == set(described)  # that is the description
