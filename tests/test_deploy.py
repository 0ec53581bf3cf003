"""The files for Compose, Kubernetes, Prometheus and Grafana, held against the service that they deploy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import PREFIX, Settings
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, tone

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FORCED_S = 15  # what docs/settings.md asks for beside drain_timeout_s
METRIC = re.compile(r"\b(?:speech_ssl|process)_\w+")

Manifest = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here it is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key twice"
        return super().construct_mapping(node, deep=deep)


def load(path: Path) -> Manifest:
    loaded: Manifest = yaml.load(path.read_text(), StrictLoader)
    return loaded


def manifests() -> dict[str, Manifest]:
    """By kind, as kustomize would apply them."""
    listed = load(KUBERNETES / "kustomization.yaml")["resources"]
    others = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == others
    return {(loaded := load(KUBERNETES / name))["kind"]: loaded for name in listed}


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def settings_of(environment: dict[str, str]) -> Settings:
    """Raises for a name that is no setting, and for a value that it does not take."""
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), FakeRuntime())) as client:
        yield client


@pytest.fixture(scope="module")
def metrics(client: TestClient) -> dict[str, set[str]]:
    """The samples of a service that was asked for something: their names, with those of their labels."""
    client.post("/v1/embeddings", content=encoded(tone(1.0)), headers={"content-type": "audio/wav"})
    client.post("/v1/embeddings", content=b"no audio", headers={"content-type": "audio/wav"})
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


# Kubernetes


def pods() -> list[Any]:
    kserve = load(DEPLOY / "kserve.yaml")["spec"]["predictor"]
    return [
        pytest.param(manifests()["Deployment"]["spec"]["template"]["spec"], id="deployment"),
        pytest.param(kserve, id="kserve"),
    ]


@pytest.mark.parametrize("pod", pods())
def test_a_pod_has_no_rights_that_it_does_not_need(pod):
    (container,) = pod["containers"]
    uid = int(re.search(r"useradd .*--uid (\d+)", dockerfile())[1])
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in [dict(each) for each in pod["volumes"]]}
    assert set(mounted.values()) == set(volumes)
    room = quantity(volumes[mounted["/tmp"]]["emptyDir"]["sizeLimit"])
    assert room > Settings().max_pending_bytes


@pytest.mark.parametrize("pod", pods())
def test_a_pod_is_told_settings_that_exist_and_asked_at_its_port(pod, client):
    (container,) = pod["containers"]
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    settings = settings_of(environment)
    assert settings.host == "0.0.0.0" and settings.log_format == "json"
    (threads,) = [each["valueFrom"] for each in container["env"] if each["name"] == "OMP_NUM_THREADS"]
    assert (
        threads == {"resourceFieldRef": {"resource": "requests.cpu"}}
        and "cpu" in container["resources"]["requests"]
    )
    assert pod["enableServiceLinks"] is False, "they would set SPEECH_SSL_PORT"
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port
    for kind in ("startup", "readiness", "liveness"):
        assert container[f"{kind}Probe"]["timeoutSeconds"] >= 3, "one second is short on a busy processor"
        probe = container[f"{kind}Probe"]["httpGet"]
        assert probe["port"] in (settings.port, port.get("name"))
        assert client.get(probe["path"]).status_code == 200
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"


@pytest.mark.parametrize("pod", pods())
def test_a_pod_has_the_time_that_draining_takes(pod):
    (container,) = pod["containers"]
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + settings_of(environment).drain_timeout_s + FORCED_S
    assert pod["terminationGracePeriodSeconds"] > needed
    assert quantity(container["resources"]["limits"]["memory"]) >= 2 * Settings().decode_memory_bytes


def quantity(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", text).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def test_manifests_are_about_the_same_pods():
    every = manifests()
    deployment = every["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert every["Service"]["spec"]["selector"] == labels
    for kind, path in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert every[kind]["spec"][path]["matchLabels"] == labels
    monitor = load(KUBERNETES / "monitoring" / "podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    named = {"http"} == {port["name"] for port in deployment["template"]["spec"]["containers"][0]["ports"]}
    assert named and every["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert monitor["podMetricsEndpoints"][0]["port"] == "http"
    assert every["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": "http"}]
    assert set(every["NetworkPolicy"]["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_the_autoscaler_follows_a_metric_that_there_is(metrics):
    spec = manifests()["HorizontalPodAutoscaler"]["spec"]
    deployment = manifests()["Deployment"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"], "each apply would undo what the autoscaler did"
    (metric,) = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in metrics
    assert int(metric["pods"]["target"]["averageValue"]) < Settings().max_queue_s
    (rule,) = load(KUBERNETES / "monitoring" / "prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == name and rule["seriesQuery"].startswith(f"{name}{{")


def test_keys_come_from_a_secret_that_is_not_in_the_repository():
    generator = load(KUBERNETES / "kustomization.yaml")["secretGenerator"][0]
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [secret["secretName"] for secret in secrets] == [generator["name"]]
    environment = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    keys = Path(environment["SPEECH_SSL_API_KEYS"])
    assert generator["files"] == [keys.name]
    assert str(keys.parent) in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for file in (".gitignore", ".dockerignore"):
        assert f"docs/deploy/kubernetes/{keys.name}" in (ROOT / file).read_text().splitlines()


# Compose


def test_compose_starts_the_service_alone_or_with_monitoring():
    services = load(ROOT / "compose.yaml")["services"]
    assert {name for name, each in services.items() if "profiles" not in each} == {"service"}
    assert all(each["profiles"] == ["monitoring"] for name, each in services.items() if name != "service")
    service = services["service"]
    settings = settings_of(service["environment"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    port = re.search(r"SPEECH_SSL_PORT=(\d+)", dockerfile())[1]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.drain_timeout_s + FORCED_S
    (scrape,) = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"service:{port}"]}]


def test_compose_mounts_what_there_is_where_it_is_looked_for():
    services = load(ROOT / "compose.yaml")["services"]
    mounted = {}
    for each in services.values():
        for volume in each.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                assert (ROOT / source).exists() and volume.endswith(":ro")
                mounted[target] = ROOT / source
    provider = load(DEPLOY / "grafana" / "provisioning" / "dashboards" / "speech-ssl.yml")["providers"][0]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted and str(Path(home).parent) == provider["options"]["path"]
    source = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    assert source["type"] == "prometheus" and source["url"] == "http://prometheus:9090"
    rules = load(DEPLOY / "prometheus" / "prometheus.yml")["rule_files"]
    assert all((mounted["/etc/prometheus"] / name).is_file() for name in rules)


# Prometheus and Grafana


def dashboard() -> Manifest:
    loaded: Manifest = json.loads((DEPLOY / "grafana" / "speech-ssl.json").read_text())
    return loaded


def expressions() -> list[tuple[str, str]]:
    """(where it stands, PromQL)"""
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]
    found += [(v["name"], v["query"]["query"]) for v in variables() if v["type"] == "query"]
    for group in load(DEPLOY / "prometheus" / "alerts.yml")["groups"]:
        found += [(rule["alert"], rule["expr"]) for rule in group["rules"]]
    return found


def variables() -> list[Manifest]:
    listed: list[Manifest] = dashboard()["templating"]["list"]
    return listed


def test_expressions_name_metrics_that_there_are(metrics):
    assert len(expressions()) > 30
    named = {name for _, expression in expressions() for name in METRIC.findall(expression)}
    assert named <= set(metrics)
    for where, expression in expressions():
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right), where
        bare = re.findall(r"\b\w+_(?:total|bucket|sum|count)\{[^}]*\}(?!\[)", expression)
        assert not bare or expression.startswith("label_values("), f"{where}: a counter alone says nothing"


def test_labels_in_expressions_are_those_of_the_metric(metrics):
    for where, expression in expressions():
        for name, selector in re.findall(r"\b((?:speech_ssl|process)_\w+)\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selector))
            assert used <= metrics[name] | {"job", "instance"}, (where, name)


def test_the_dashboard_can_be_imported_anywhere():
    whole = dashboard()
    panels = whole["panels"]
    assert "id" not in whole and whole["uid"] and whole["schemaVersion"] >= 39
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert [v["name"] for v in variables() if v["type"] == "datasource"] == ["datasource"]
    for each in [p for p in panels if p["type"] != "row"] + [v for v in variables() if v["type"] == "query"]:
        assert each["datasource"] == source
        assert all(target["datasource"] == source for target in each.get("targets", []))
    used = set(re.findall(r"\$(\w+)|\$\{(\w+)\}", json.dumps(whole)))
    names = {first or second for first, second in used} - {"__rate_interval", "__all"}
    assert names == {v["name"] for v in variables()}


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
