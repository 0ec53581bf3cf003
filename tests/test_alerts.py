"""The alerts against what Prometheus would have of a service that really failed: each finds its series."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, tone, until
from tests.test_deploy import DEPLOY, KUBERNETES, load, manifests

URL = "/v1/embeddings"
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)(?:\{((?:[^\"}]|\"[^\"]*\")*)\})?(?!\w|\s*\()")
MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}

Labels = dict[str, str]


class Selector(NamedTuple):
    name: str
    matchers: list[tuple[str, str, str]]


def alerts() -> list[Any]:
    groups = load(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    return [pytest.param(rule, id=rule["alert"]) for group in groups for rule in group["rules"]]


def selectors(expression: str) -> list[Selector]:
    """Names of series with what their labels have to be; functions, groupings and times are none."""
    bare = re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", expression))
    found = [Selector(match[1], MATCHER.findall(match[2] or "")) for match in SELECTOR.finditer(bare)]
    aggregations = {"sum", "min", "max", "avg", "count"}
    return [each for each in found if each.name not in WORDS | aggregations]


def jobs() -> list[str]:
    """What the label `job` is: as Compose's Prometheus scrapes, and as the operator does."""
    (scrape,) = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    monitor = load(KUBERNETES / "monitoring" / "podmonitor.yaml")
    pod = manifests()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    by_default = f"default/{monitor['metadata']['name']}"
    label = monitor["spec"].get("jobLabel")
    return [scrape["job_name"], pod.get(label, by_default) if label else by_default]


@pytest.fixture(scope="module", params=[0, 1], ids=["compose", "operator"])
def job(request: pytest.FixtureRequest) -> str:
    return jobs()[request.param]


@pytest.fixture(scope="module")
def told() -> Iterator[str]:
    """Of a service that failed, timed out and was busy."""
    fake, wav, loud = FakeRuntime(), encoded(tone(1.0)), encoded(tone(1.0) * 2)
    with serving(fake, max_queue_s=1.5) as client, ThreadPoolExecutor(1) as pool:

        def ask(data: bytes, **headers: str) -> int:
            return client.post(URL, files={"file": data}, headers=headers).status_code

        while fake.entered.acquire(blocking=False):
            pass  # of warming up
        fake.open_gate.clear()
        held = pool.submit(ask, wav)
        try:
            assert fake.entered.acquire(timeout=60)
            assert ask(wav) == 429
        finally:
            fake.open_gate.set()
        assert held.result() == 200
        fake.open_gate.clear()
        assert ask(wav, **{"X-Request-Timeout": "0.1"}) == 504
        fake.open_gate.set()
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text)
        fake.poison = RuntimeError
        assert ask(loud) == 500
        for path in ("/health/ready", "/v2/health/ready", "/metrics"):
            client.get(path)
        yield client.get("/metrics").text


@pytest.fixture(scope="module")
def series(told: str, job: str) -> dict[str, list[Labels]]:
    """By name: the labels of each, with those that Prometheus adds."""
    target = {"job": job, "instance": "service:8000"}
    found: dict[str, list[Labels]] = {"up": [target]}
    for family in text_string_to_metric_families(told):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels) | target)
    return found


def holds(labels: Labels, matcher: tuple[str, str, str]) -> bool:
    name, operator, value = matcher
    given = labels.get(name, "")
    same = given == value if operator in ("=", "!=") else re.fullmatch(value, given) is not None
    return same == (operator in ("=", "=~"))


@pytest.mark.parametrize("rule", alerts())
def test_each_selector_finds_series_that_there_are(rule: Any, series: dict[str, list[Labels]]) -> None:
    named = selectors(rule["expr"])
    assert named
    for selector in named:
        assert selector.name in series, "there is no such metric"
        every = series[selector.name]
        labels = {name for each in every for name in each}
        assert {name for name, _, _ in selector.matchers} <= labels
        for name, operator, value in selector.matchers:
            for part in value.split("|"):
                equal = (name, "=~" if "~" in operator else "=", part)
                assert any(holds(each, equal) for each in every), f"{name} is never {part}"
        assert any(all(holds(each, matcher) for matcher in selector.matchers) for each in every)
    for grouping in GROUPING.findall(rule["expr"]):
        wanted = {name.strip() for name in grouping.split(",")}
        assert all(wanted <= set(each) for selector in named for each in series[selector.name])


@pytest.mark.parametrize("rule", alerts())
def test_what_an_alert_says_is_known_of_it(rule: Any) -> None:
    """A label that was summed over is not."""
    told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    groupings = GROUPING.findall(rule["expr"])
    if "absent(" in rule["expr"]:
        assert not told
    elif groupings:
        assert told <= {name.strip() for grouping in groupings for name in grouping.split(",")}
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_expressions_are_read_as_prometheus_reads_them() -> None:
    expression = (
        'sum by (job) (rate(a_total{outcome=~"1|2",b!="}"}[5m])) / max(c) > 0.02 and absent(up{job="x"})'
    )
    assert selectors(expression) == [
        ("a_total", [("outcome", "=~", "1|2"), ("b", "!=", "}")]),
        ("c", []),
        ("up", [("job", "=", "x")]),
    ]
