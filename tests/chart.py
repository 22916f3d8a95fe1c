"""The chart as it is rendered: the overlays, and a matrix of values beside them."""

from functools import cache
from typing import Any

import yaml

from k8s import generate

# Values beside the overlays: name -> (presets, values set on top as Helm's --set-json takes them).
MATRIX: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{name: (presets, generate.OVERLAY_SETS) for name, presets in generate.OVERLAYS.items()},
    "a password that Helm makes": (("cpu-demo",), ()),
    "limits": (
        ("cpu-demo",),
        (
            "settings.http.max_connections=2000",
            "settings.http.max_connections_per_address=500",
        ),
    ),
    "a password": (
        ("cpu-demo",),
        ('redis.passwordSecret={"name":"s","key":"k"}', 'image.pullSecrets=["registry"]'),
    ),
    "an external store": (
        ("cpu-demo",),
        (
            'store.urlSecret={"name":"s","key":"url"}',
            'gcs.redisAddress="rediss://redis:6379"',
            'networkPolicy.egress.to=[{"to":[{"ipBlock":{"cidr":"10.1.2.3/32"}}]}]',
        ),
    ),
    "monitoring": (("gpu", "monitoring"), ()),
    "names that YAML could take for something else": (
        ("cpu-demo",),
        (
            'workers=[{"name":"on"}]',
            'image.pullSecrets=["1"]',
            'data.storageClass="1"',
            'env={"ON":"1"}',
        ),
    ),
    "a wildcard": (("gpu",), ('ingress={"enabled":true,"host":"*.example.com"}',)),
    "no token": (("gpu",), ("rayToken=false",)),
    "roles of the cloud": (
        ("gpu",),
        (
            'serviceAccount.annotations={"eks.amazonaws.com/role-arn":"arn"}',
            'workerDefaults={"priorityClassName":"high","runtimeClassName":"nvidia"}',
            'workerDefaults.podAnnotations={"a":"b"}',
        ),
    ),
    "no fault tolerance": (("cpu-demo",), ("gcs.faultTolerance=false", "redis.enabled=true")),
    "no autoscaler": (("gpu",), ("autoscaling.enabled=false",)),
    "claims that exist": (
        ("gpu",),
        (
            'data.existingClaim="adapters"',
            'models={"existingClaim":"models","readOnly":true}',
            'backup={"enabled":true,"existingClaim":"backups","restore":"roundhouse-1.tar"}',
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
        ('gateway={"enabled":true,"name":"public","namespace":"gateways","host":"a.example"}',),
    ),
    "few clients": (
        ("gpu",),
        ('networkPolicy.clients=[{"podSelector":{"matchLabels":{"app":"chat"}}}]',),
    ),
    "egress to anywhere": (("gpu",), ("networkPolicy.egress.enabled=false",)),
    "egress to nowhere": (("gpu",), ("networkPolicy.egress.ports=[]",)),
    "long answers": (("gpu",), ("settings.http.request_timeout_s=3599.5",)),
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
