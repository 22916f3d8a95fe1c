"""What `k8s/` renders, held against the schemas, the operator's rules, and our own builder."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus
from cloudcoil.models.prometheus_operator import v1alpha1 as prometheus_alpha

from k8s import generate
from k8s.tools import ToolFailed, helm, kubectl
from tests.crd import CRD, ray_service_schema

KUBERNETES = "1.37"
ROOT = Path(__file__).parents[1]
# Values beside the overlays: name -> (presets, values set on top as Helm's --set-json takes them).
MATRIX: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{name: (presets, ()) for name, presets in generate.OVERLAYS.items()},
    "a password": (
        ("cpu-demo",),
        ('redis.passwordSecret={"name":"s","key":"k"}', 'image.pullSecrets=["registry"]'),
    ),
    "an external store": (
        ("cpu-demo",),
        ('store.urlSecret={"name":"s","key":"url"}', 'gcs.redisAddress="redis:6379"'),
    ),
    "no fault tolerance": (("cpu-demo",), ("gcs.faultTolerance=false", "redis.enabled=true")),
    "no autoscaler": (("gpu",), ("autoscaling.enabled=false",)),
    "claims that exist": (
        ("gpu",),
        (
            'data.existingClaim="adapters"',
            'models={"existingClaim":"models","readOnly":true}',
            'backup={"enabled":true,"existingClaim":"backups"}',
        ),
    ),
    "object storage": (
        ("gpu",),
        (
            "data.enabled=false",
            'settings.store.blobs="s3://bucket/adapters"',
            'secrets.environment=["objects"]',
            "backup.enabled=true",
        ),
    ),
    "a gateway": (
        ("gpu",),
        ('gateway={"enabled":true,"name":"public","namespace":"gateways"}',),
    ),
    "few clients": (
        ("gpu",),
        ('networkPolicy.clients=[{"podSelector":{"matchLabels":{"app":"chat"}}}]',),
    ),
    "no policies": (("gpu",), ("networkPolicy.enabled=false",)),
    "other nodes": (
        ("gpu",),
        (
            'head={"nodeSelector":{"pool":"cpu"},"tolerations":[{"operator":"Exists"}]}',
            'workerDefaults.nodeSelector={"pool":"gpu"}',
            'env={"NCCL_DEBUG":"WARN"}',
        ),
    ),
    "pruned adapters": (("cpu-demo",), ("adapters.prune=true",)),
    "a long name": (("cpu-demo",), (f'nameOverride="{"roundhouse-" * 6}"',)),
}


@cache
def manifests(case: str) -> list[dict[str, Any]]:
    presets, sets = MATRIX[case]
    text = generate.rendered(*map(generate.preset_file, presets), sets=sets)
    return [doc for doc in yaml.safe_load_all(text) if doc]


def of_kind(case: str, kind: str) -> list[dict[str, Any]]:
    return [doc for doc in manifests(case) if doc["kind"] == kind]


def ray_service(case: str) -> dict[str, Any]:
    (found,) = of_kind(case, "RayService")
    return found


def ray_groups(case: str) -> list[dict[str, Any]]:
    cluster = ray_service(case)["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(case: str) -> list[tuple[str, dict[str, Any]]]:
    """Every pod template, by what it is for."""
    found = [(g.get("groupName", "head"), g["template"]) for g in ray_groups(case)]
    for doc in manifests(case):
        match doc["kind"]:
            case "StatefulSet" | "Job":
                found.append((doc["metadata"]["name"], doc["spec"]["template"]))
            case "CronJob":
                job = doc["spec"]["jobTemplate"]["spec"]
                found.append((doc["metadata"]["name"], job["template"]))
    return found


def variables(template: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e for c in template["spec"]["containers"] for e in c.get("env", ())}


every_case = pytest.mark.parametrize("case", MATRIX)


@every_case
def test_every_manifest_is_valid_strictly(case):
    foreign = {
        "PodMonitor": prometheus.PodMonitor,
        "PrometheusRule": prometheus.PrometheusRule,
        "ScrapeConfig": prometheus_alpha.ScrapeConfig,
    }
    for doc in manifests(case):
        if doc["kind"] in foreign:
            foreign[doc["kind"]].model_validate(doc)
        elif doc["kind"] not in ("RayService", "HTTPRoute"):
            kubernetes_validate.validate(doc, KUBERNETES, strict=True)


@pytest.mark.skipif(not CRD.exists(), reason="the CRD is not beside the project")
@every_case
def test_the_ray_service_is_valid_strictly(case):
    jsonschema.Draft202012Validator(ray_service_schema()).validate(ray_service(case))


@pytest.mark.skipif(not CRD.exists(), reason="the CRD is not beside the project")
def test_the_strict_schema_would_see_a_typing_error():
    doc = json.loads(json.dumps(ray_service("gpu")))
    doc["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.Draft202012Validator(ray_service_schema()).validate(doc)


@every_case
def test_the_operators_own_rules_are_kept(case):
    doc = ray_service(case)
    spec, cluster = doc["spec"], doc["spec"]["rayClusterConfig"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", doc["metadata"]["name"])
    strategy = spec["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        assert cluster["enableInTreeAutoscaling"]
        assert options["gatewayClassName"]
        assert options["stepSizePercent"] <= options["maxSurgePercent"]
        assert options["intervalSeconds"] > 0
    for group in ray_groups(case):
        template = group["template"]
        (one,), (other,) = (of_kind(case, "Job") for case in ("cpu-demo", "pruned adapters"))
    assert one["metadata"]["name"] != other["metadata"]["name"]


def test_alerts_parse_as_the_chart_ships_them():
    (rule,) = of_kind("gpu", "PrometheusRule")
    rules = [r for group in rule["spec"]["groups"] for r in group["rules"]]
    assert rules
    for rule in rules:
        promql_parser.parse(rule["expr"])
    dashboards = [d for d in of_kind("gpu", "ConfigMap") if "roundhouse.json" in d["data"]]
    assert json.loads(dashboards[0]["data"]["roundhouse.json"])["title"]


@pytest.mark.parametrize("overlay", generate.OVERLAYS)
def test_kubectl_takes_the_overlay(overlay):
    """`kubectl apply -k` begins so; every object is in the namespace, which comes first."""
    text = kubectl("kustomize", str(ROOT / "k8s" / "overlays" / overlay))
    docs = [doc for doc in yaml.safe_load_all(text) if doc]
    assert docs[0]["kind"] == "Namespace"
    assert {doc["metadata"].get("namespace") for doc in docs[1:]} == {"roundhouse"}
    assert {d["kind"] for d in docs[1:]} == {d["kind"] for d in manifests(overlay)}


@pytest.mark.parametrize("path", [*generate.chart_files(), *generate.overlay_files()])
def test_what_is_generated_is_up_to_date(path):
    made = generate.chart_files() | generate.overlay_files()
    assert (ROOT / "docs" / path).read_text() == made[path], "run `make docs`"


def test_helm_finds_nothing_to_say():
    preset = str(generate.preset_file("gpu"))
    said = helm("lint", "--strict", str(generate.CHART), "--values", preset)
    assert "0 chart(s) failed" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("settings.modles=[]", "modles"),
        ("settings.models=[]", "models"),
        ('settings.models=[{"id":"m","path":"p","replicas":0}]', "replicas"),
        ('settings.preload=["x"]', "preload"),
        ('settings.store.url="redis://x"', "url"),
        ("workers=[]", "workers"),
        ('workers=[{"name":"GPU"}]', "name"),
        ('workers=[{"name":"cpu","gpu":1}]', "gpu"),
        ('redis.storage="8 GB"', "storage"),
        ("nodeCache.gib=0", "gib"),
        ('upgrade.strategy="Recreate"', "strategy"),
        ('upgrade.strategy="NewClusterWithIncrementalUpgrade"', "upgrade.gatewayClassName"),
        ("redis.enabled=false", "gcs.redisAddress"),
        ("gateway.enabled=true", "gateway.name"),
        ('drainSeconds="soon"', "drainSeconds"),
        ("tlsSecret=1", "tlsSecret"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, said):
    with pytest.raises(ToolFailed) as refused:
        generate.rendered(generate.preset_file("cpu-demo"), sets=(wrong,))
    assert said in str(refused.value)


def test_without_a_preset_it_says_what_is_missing():
    with pytest.raises(ToolFailed, match="models"):
        generate.rendered()
