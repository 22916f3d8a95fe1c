"""What `k8s/` renders, held against the schemas, the operator's rules, and our own builder."""

import base64
import ipaddress
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus
from cloudcoil.models.prometheus_operator import v1alpha1 as prometheus_alpha
from ray.serve.schema import ServeDeploySchema

from cluster.settings import HttpSettings, load_settings
from deployments.app import build
from deployments.command.manifest import read_manifest
from deployments.process.ray_options import ENVIRONMENT, SERVE_LOGGING
from deployments.proxy.config import MAX_CONNECTIONS, PER_ADDRESS
from k8s import generate
from k8s.tools import ToolFailed, helm, kubectl
from tests.chart import MATRIX, manifests, of_kind, pods, ray_groups, ray_service, variables
from tests.crd import CRD, ray_service_validator
from tests.kubernetes_api import kubernetes_api

KUBERNETES = "1.37"
ROOT = Path(__file__).parents[1]
# CI has it; who clones the project alone may not.
with_crd = pytest.mark.skipif(
    not CRD.exists() and "CI" not in os.environ, reason="the CRD is not beside the project"
)
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
        elif doc["kind"] == "HTTPRoute":
            assert set(doc["spec"]) == {"parentRefs", "hostnames", "rules"}
        elif doc["kind"] != "RayService":
            kubernetes_validate.validate(doc, KUBERNETES, strict=True)


@with_crd
@every_case
def test_the_ray_service_is_valid_strictly(case):
    ray_service_validator().validate(ray_service(case))


@with_crd
def test_the_strict_schema_would_see_a_typing_error():
    doc = json.loads(json.dumps(ray_service("gpu")))
    doc["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        ray_service_validator().validate(doc)


@every_case
def test_the_operators_own_rules_are_kept(case):
    doc = ray_service(case)
    spec, cluster = doc["spec"], doc["spec"]["rayClusterConfig"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", doc["metadata"]["name"])
    assert re.fullmatch(
        r"(\d+[smh])+", doc["metadata"]["annotations"]["ray.io/initializing-timeout"]
    )
    if "authOptions" in cluster:
        assert cluster["authOptions"] == {"mode": "token"}
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52), "tokens need it"
    strategy = spec["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        assert cluster["enableInTreeAutoscaling"]
        assert options["gatewayClassName"]
        assert options["stepSizePercent"] <= options["maxSurgePercent"]
        assert options["intervalSeconds"] > 0
    for group in ray_groups(case):
        template = group["template"]
        names = {c["name"] for c in template["spec"]["containers"]}
        assert template["spec"]["containers"][0]["name"] in ("ray-head", "ray-worker"), names
        if "gcsFaultToleranceOptions" in cluster:
            assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & variables(template).keys()
            assert "redis-password" not in group["rayStartParams"]
        if cluster["enableInTreeAutoscaling"]:
            assert template["spec"].get("restartPolicy", "Never") == "Never"
            assert cluster["autoscalerOptions"]["version"] == "v2"
        container = template["spec"]["containers"][0]
        assert {"livenessProbe", "readinessProbe"}.isdisjoint(container), "the operator's own"
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert (ports["serve"], ports["metrics"]) == (8000, 8080)
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@every_case
def test_pods_are_restricted_and_ask_the_api_nothing(case):
    for name, template in pods(case):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        is_scaling_head = name == "head" and case != "no autoscaler"
        assert spec.get("automountServiceAccountToken") is (None if is_scaling_head else False)
        for container in spec["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False
            assert inner["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


@every_case
def test_selectors_match_labels_that_pods_carry(case):
    # What the operator gives workers that may serve.
    served = {"ray.io/serve": "true"}
    carried = [template["metadata"]["labels"] | served for _, template in pods(case)]
    selectors = []
    for doc in manifests(case):
        spec = doc.get("spec", {})
        match doc["kind"]:
            case "PodDisruptionBudget" | "PodMonitor" | "StatefulSet":
                selectors.append(spec["selector"])
            case "Service":
                selectors.append({"matchLabels": spec["selector"]})
            case "NetworkPolicy":
                selectors.append(spec["podSelector"])
                peers = [p for rule in spec.get("ingress", ()) for p in rule.get("from", ())]
                ours = [p["podSelector"] for p in peers if "podSelector" in p]
                selectors += [s for s in ours if s["matchLabels"] != {"app": "chat"}]
    for group in ray_groups(case):
        constraints = group["template"]["spec"].get("topologySpreadConstraints", ())
        selectors += [c["labelSelector"] for c in constraints]
    assert selectors
    for selector in selectors:
        assert any(_selects(selector, labels) for labels in carried), selector


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ())
    )


@every_case
def test_disruption_budgets_are_numbers_for_the_api_server_cannot_count_the_rest(case):
    """RayClusters have no scale subresource: a share, or maxUnavailable, blocks every drain."""
    groups = {g["groupName"]: g for g in ray_groups(case)[1:]}
    for budget in of_kind(case, "PodDisruptionBudget"):
        spec = budget["spec"]
        assert "maxUnavailable" not in spec
        group = groups[spec["selector"]["matchLabels"]["roundhouse/group"]]
        assert 0 < spec["minAvailable"] < group["minReplicas"]
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@every_case
def test_ray_pods_leave_the_operator_the_labels_that_it_selects_by(case):
    for group in ray_groups(case):
        assert not any(
            k.startswith("app.kubernetes.io") for k in group["template"]["metadata"]["labels"]
        )


@every_case
def test_services_that_are_named_exist(case):
    """Ours, or those that the operator makes for this strategy."""
    name = ray_service(case)["metadata"]["name"]
    strategy = ray_service(case)["spec"]["upgradeStrategy"]["type"]
    made = {doc["metadata"]["name"] for doc in of_kind(case, "Service")}
    if strategy == "NewCluster":
        made.add(f"{name}-serve-svc")
    text = yaml.safe_dump_all(manifests(case))
    named = set(re.findall(rf"{name}-(?:serve-svc|head-svc|any|redis)(?=[.:\s])", text))
    services = {n for n in named if n != f"{name}-redis" or n in made}
    assert services <= made


@every_case
def test_ray_gets_the_environment_that_it_gets_elsewhere(case):
    for group in ray_groups(case):
        given = {k: v.get("value") for k, v in variables(group["template"]).items()}
        assert given.items() >= ENVIRONMENT.items()
    config = yaml.safe_load(ray_service(case)["spec"]["serveConfigV2"])
    assert config["logging_config"] == SERVE_LOGGING
    args = config["applications"][0]["args"]
    limit_s = HttpSettings(**args.get("http", {})).request_timeout_s
    assert config["http_options"]["request_timeout_s"] == limit_s


@every_case
def test_an_old_cluster_stays_until_its_answers_have_ended(case):
    spec = ray_service(case)["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    assert spec["rayClusterDeletionDelaySeconds"] == 60 + math.ceil(
        config["http_options"]["request_timeout_s"]
    )


@every_case
def test_the_hub_can_write_where_it_is_told_to(case):
    for group in ray_groups(case):
        (container,) = group["template"]["spec"]["containers"]
        home = variables(group["template"])["HF_HOME"]["value"]
        read_only = [m["mountPath"] for m in container["volumeMounts"] if m.get("readOnly")]
        assert not any(home.startswith(path) for path in read_only)


@every_case
def test_what_pods_mount_and_read_is_there_or_a_named_secret(case):
    made = {(doc["kind"], doc["metadata"]["name"]) for doc in manifests(case)}
    for _, template in pods(case):
        spec = template["spec"]
        declared = {v["name"] for v in spec.get("volumes", ())} | {"data"}
        for container in spec["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= declared
        for volume in spec.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            is_given = claim in ("adapters", "models", "backups")
            assert claim is None or is_given or ("PersistentVolumeClaim", claim) in made
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", spec["serviceAccountName"]) in made


@every_case
def test_no_secret_is_written_down(case):
    for _, template in pods(case):
        for name, variable in variables(template).items():
            if re.search("PASSWORD|TOKEN|KEY", name):
                assert "value" not in variable, name
        (url,) = [v for n, v in variables(template).items() if n == "ROUNDHOUSE_STORE__URL"] or [{}]
        assert not re.search(r":[^$/@]+@", url.get("value", ""))


def egress_to(case: str, component: str, address: str, port: int) -> bool:
    """Whether pods of a component reach an address by their network policies."""
    labels = {"roundhouse/component": component, "roundhouse/release": "roundhouse"}
    policies = [
        doc["spec"]
        for doc in of_kind(case, "NetworkPolicy")
        if "Egress" in doc["spec"]["policyTypes"] and _selects(doc["spec"]["podSelector"], labels)
    ]
    rules = [rule for policy in policies for rule in policy["egress"]]
    return not policies or any(_lets(rule, address, port) for rule in rules)


def _lets(rule: dict[str, Any], address: str, port: int) -> bool:
    ports = [p["port"] for p in rule.get("ports", ())]
    blocks = [peer["ipBlock"] for peer in rule.get("to", ()) if "ipBlock" in peer]
    return (not ports or port in ports) and (
        "to" not in rule or any(_is_in(block, address) for block in blocks)
    )


def _is_in(block: dict[str, Any], address: str) -> bool:
    ip, network = ipaddress.ip_address(address), ipaddress.ip_network(block["cidr"])
    excepted = [ipaddress.ip_network(e) for e in block.get("except", ())]
    # The API server takes none that is outside, nor the whole.
    assert all(e.subnet_of(network) and e != network for e in excepted)
    return ip in network and not any(ip in e for e in excepted)


NOT_PUBLIC = {
    "metadata of most clouds": "169.254.169.254",
    "metadata of AWS, by IPv6": "fd00:ec2::254",
    "metadata of Alibaba": "100.100.100.200",
    "Azure's own": "168.63.129.16",
    "a neighbour": "10.0.0.7",
    "another one": "192.168.1.1",
    "a service": "172.20.0.1",
    "itself": "127.0.0.1",
    "a neighbour, by IPv6": "fd12::1",
    "a neighbour, translated": "64:ff9b::a00:7",
}


@pytest.mark.hostile
@pytest.mark.parametrize("component", ["worker", "adapters", "backup"])
@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_who_fetches_what_users_name_reaches_nothing_private(component, address):
    """An adapter's source may be a name that resolves to any of them."""
    for port in (80, 443, 6379, 8443):
        assert not egress_to("gpu", component, address, port)


def test_who_fetches_reaches_the_hub_names_and_what_is_named():
    assert egress_to("gpu", "worker", "18.155.1.2", 443)
    assert egress_to("gpu", "worker", "2600:9000::1", 443)
    assert egress_to("gpu", "worker", "10.0.0.10", 53)
    assert not egress_to("gpu", "worker", "18.155.1.2", 22)
    assert not egress_to("egress to nowhere", "worker", "18.155.1.2", 443)
    assert egress_to("egress to anywhere", "worker", "10.0.0.7", 80)
    for component in ("worker", "head", "backup"):
        assert egress_to("an external store", component, "10.1.2.3", 6379)
        assert not egress_to("an external store", component, "10.1.2.4", 6379)


def test_the_head_reaches_the_kubernetes_api_for_its_autoscaler_alone():
    assert egress_to("gpu", "head", "10.96.0.1", 443)
    assert not egress_to("gpu", "head", "169.254.169.254", 80)
    assert not egress_to("no autoscaler", "head", "10.96.0.1", 443)


def installed(kind: str, version: str, **fields: Any) -> dict[str, Any]:
    """An object of the included Redis, as Helm has made it."""
    where = {"namespace": "roundhouse", "name": "roundhouse-redis"}
    owner = {f"meta.helm.sh/release-{k}": "roundhouse" for k in ("name", "namespace")}
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    metadata = where | {"annotations": owner, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | fields


def rendered_beside(*objects: dict[str, Any]) -> list[dict[str, Any]]:
    """The demo's manifests, where these objects are already."""
    with kubernetes_api(*objects) as url:
        command = ["template", "roundhouse", str(generate.CHART), "--namespace", "roundhouse"]
        command += ["--values", str(generate.preset_file("cpu-demo")), "--kube-apiserver", url]
        text = helm(*command, "--dry-run=server", "--disable-openapi-validation")
    return [doc for doc in yaml.safe_load_all(text) if doc]


def passwords(docs: list[dict[str, Any]]) -> list[str]:
    secrets = [doc["data"]["password"] for doc in docs if doc["kind"] == "Secret"]
    return [base64.b64decode(secret).decode() for secret in secrets]


OLD_REDIS = installed("StatefulSet", "apps/v1")


def test_the_included_redis_gets_a_password_of_its_own():
    """And nobody who has not it, neither pods of ours nor Ray, is told to use it without."""
    one, other = (passwords(rendered_beside()) for _ in range(2))
    assert one != other
    assert re.fullmatch("[A-Za-z0-9]{32}", one[0])
    case = "a password that Helm makes"
    (redis,) = of_kind(case, "StatefulSet")
    assert "--requirepass" in redis["spec"]["template"]["spec"]["containers"][0]["args"]
    asked = {"name": "roundhouse-redis", "key": "password"}
    options = ray_service(case)["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": asked}}
    for _, template in pods(case):
        if "ROUNDHOUSE_STORE__URL" in (given := variables(template)):
            assert given["ROUNDHOUSE_STORE_PASSWORD"]["valueFrom"] == {"secretKeyRef": asked}
            assert ":$(ROUNDHOUSE_STORE_PASSWORD)@" in given["ROUNDHOUSE_STORE__URL"]["value"]


def test_an_upgrade_keeps_the_password():
    kept = installed("Secret", "v1", data={"password": base64.b64encode(b"kept").decode()})
    assert passwords(rendered_beside(OLD_REDIS, kept)) == ["kept"]


def test_a_redis_that_an_earlier_release_left_open_is_not_locked_under_its_cluster():
    docs = rendered_beside(OLD_REDIS)
    assert passwords(docs) == []
    assert "PASSWORD" not in yaml.safe_dump_all(docs)


def test_a_redis_whose_secret_was_lost_gets_another_password():
    args = {"template": {"spec": {"containers": [{"args": ["--requirepass", "$(PASSWORD)"]}]}}}
    (password,) = passwords(rendered_beside(installed("StatefulSet", "apps/v1", spec=args)))
    assert password


def test_the_proxys_limits_reach_every_node():
    for group in ray_groups("limits"):
        given = variables(group["template"])
        assert given[MAX_CONNECTIONS]["value"] == "2000"
        assert given[PER_ADDRESS]["value"] == "500"


@every_case
def test_ray_serve_gets_settings_that_our_builder_takes(case, monkeypatch, tmp_path):
    """The same call that Ray Serve makes, with the variables that the pods have."""
    monkeypatch.setenv("ROUNDHOUSE_STORE__URL", "redis://redis:6379/0")
    monkeypatch.setenv("ROUNDHOUSE_CACHE", str(tmp_path))
    if "ROUNDHOUSE_AUTH__KEYS" in variables(ray_groups(case)[0]["template"]):
        key = {"name": "ops", "sha256": "0" * 64, "scope": "admin"}
        monkeypatch.setenv("ROUNDHOUSE_AUTH__KEYS", json.dumps([key]))
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(ray_service(case)["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert build(application.args) is not None
    # Jobs read the same tree from a file.
    data = [doc["data"] for doc in of_kind(case, "ConfigMap")]
    (settings,) = [files["roundhouse.yaml"] for files in data if "roundhouse.yaml" in files]
    file = tmp_path / "roundhouse.yaml"
    file.write_text(settings)
    assert yaml.safe_load(settings) == application.args
    assert load_settings(file).node_cache.max_bytes < 2**30 * _cache_gib(case)


def _cache_gib(case: str) -> int:
    volumes = [v for g in ray_groups(case)[1:] for v in g["template"]["spec"]["volumes"]]
    (limit,) = {v["emptyDir"]["sizeLimit"] for v in volumes if v["name"] == "node-cache"}
    return int(limit.removesuffix("Gi"))


@every_case
def test_workers_have_what_the_settings_ask_of_nodes(case):
    """Labels, GPUs and room for every replica, or it would wait for ever."""
    settings = yaml.safe_load(ray_service(case)["spec"]["serveConfigV2"])["applications"][0]["args"]
    groups = {g["labels"]["roundhouse/group"]: g for g in ray_groups(case)[1:]}
    any_ = next(iter(groups))
    for part in (settings.get("http", {}), settings.get("router", {})):
        assert part.get("node_labels", {}).get("roundhouse/group", any_) in groups
    for model in settings["models"]:
        group = groups[model.get("node_labels", {}).get("roundhouse/group", any_)]
        volumes = {v["name"] for v in group["template"]["spec"]["volumes"]}
        assert "node-cache" in volumes, "adapters are made ready there"
        (container,) = group["template"]["spec"]["containers"]
        there = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        needed = model.get("tensor_parallel_size", 1) * model.get("gpus_per_worker", 0)
        assert needed <= there
        assert model["cpus_per_replica"] <= float(container["resources"]["requests"]["cpu"])
        if needed:
            most = model.get("max_replicas", model["replicas"])
            assert most * needed <= there * group["maxReplicas"]


@every_case
def test_a_pod_has_time_to_drain(case):
    for group in ray_groups(case):
        spec = group["template"]["spec"]
        drain = variables(group["template"])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"]
        assert float(drain) < spec["terminationGracePeriodSeconds"]


def test_the_adapters_of_the_demo_are_those_of_the_image(tmp_path):
    (config,) = of_kind("cpu-demo", "ConfigMap")
    text = config["data"]["adapters.yaml"].replace("/opt/roundhouse", str(ROOT))
    (tmp_path / "adapters.yaml").write_text(text)
    declared = {entry.name for entry in read_manifest(tmp_path / "adapters.yaml").adapters}
    assert declared == {folder.name for folder in (ROOT / "examples/adapters").iterdir()}


def test_another_manifest_is_another_job():
    (one,), (other,) = (of_kind(case, "Job") for case in ("cpu-demo", "pruned adapters"))
    assert one["metadata"]["name"] != other["metadata"]["name"]


def test_alerts_parse_as_the_chart_ships_them():
    (rule,) = of_kind("monitoring", "PrometheusRule")
    rules = [r for group in rule["spec"]["groups"] for r in group["rules"]]
    assert rules
    for rule in rules:
        promql_parser.parse(rule["expr"])
    dashboards = [d for d in of_kind("monitoring", "ConfigMap") if "roundhouse.json" in d["data"]]
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


ON_CPU = {"id": "m", "path": "p", "node_labels": {"roundhouse/group": "cpu"}}
A_CRON = {"name": "cron", "source": "s3://bucket/cron"}
INCREMENTAL = (
    '{"strategy":"NewClusterWithIncrementalUpgrade","gatewayClassName":"g","maxSurgePercent":%d}'
)


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
        (f"upgrade={INCREMENTAL % 200}", "maxSurgePercent"),
        (f"upgrade={INCREMENTAL % 5}", "upgrade.stepSizePercent"),
        (f"upgrade={INCREMENTAL % 50};autoscaling.enabled=false", "autoscaling.enabled"),
        (f'upgrade={INCREMENTAL % 50};ingress={{"enabled":true,"host":"h"}}', "roundhouse-gateway"),
        ("redis.enabled=false", "store.urlSecret"),
        ('store.urlSecret={"name":"s","key":"url"}', "gcs.redisAddress"),
        ('store.urlSecret={"name":"s"}', "store.urlSecret"),
        (
            'store.urlSecret={"name":"s","key":"url"};gcs.faultTolerance=false',
            "networkPolicy.egress.to",
        ),
        ('networkPolicy.egress.except=["10.0.0.7"]', "except"),
        ("data.enabled=false", "settings.store.blobs"),
        ('gateway={"enabled":true,"host":"h"}', "gateway.name"),
        ("ingress.enabled=true", "ingress.host"),
        ("settings.auth.open=false", "settings.auth"),
        ("settings.auth={}", "settings.auth"),
        ("settings.auth.enabled=true", "secrets.authKeys"),
        (
            'settings.auth.enabled=true;secrets.authKeys={"name":"s","key":"k"}',
            "secrets.adminKey",
        ),
        ('workers=[{"name":"cpu","replicas":5,"maxReplicas":1}]', "workers.0"),
        ('workers=[{"name":"cpu"},{"name":"cpu"}]', "workers.1.name"),
        ('settings.models=[{"id":"m","path":"p"},{"id":"m","path":"p"}]', "settings.models.1.id"),
        (
            'settings.models=[{"id":"m","path":"p","replicas":3,"max_replicas":2}]',
            "settings.models.0.max_replicas",
        ),
        ('settings.default_model="other"', "settings.default_model"),
        ('settings.router.node_labels={"roundhouse/group":"gpu"}', "none of workers (cpu)"),
        ('adapters.manifest={"adapterz":[]}', "adapterz"),
        ('adapters.manifest={"adapters":[{"name":"a"}]}', "source"),
        ('nameOverride="1st"', "nameOverride"),
        (f"settings.models=[{json.dumps(ON_CPU | {'gpus_per_worker': 1})}]", "GPUs"),
        (f"settings.models=[{json.dumps(ON_CPU | {'cpus_per_replica': 64})}]", "cpus"),
        (
            f'workers=[{{"name":"cpu","nodeCache":false}}];settings.models=[{json.dumps(ON_CPU)}]',
            "nodeCache",
        ),
        ('nameOverride="on"', "nameOverride"),
        ('env={"HF_HOME":"/x"}', "env.HF_HOME"),
        ('backup.restore="x.tar"', "backup.enabled"),
        ('backup={"enabled":true,"restore":"../x"}', "restore"),
        ('networkPolicy.operatorNamespace=""', "operatorNamespace"),
        ('ingress={"enabled":true,"host":"https://A_b/x"}', "host"),
        ('image.repository=""', "repository"),
        ('data.enabled=false;settings.store.blobs="/tmp/x"', "settings.store.blobs"),
        (f"adapters.manifest={json.dumps({'adapters': [A_CRON, A_CRON]})}", "adapters.1"),
        ('adapters.manifest={"adapters":[{"name":"a","source":"./x"}]}', "absolute"),
        ('drainSeconds="soon"', "drainSeconds"),
        ("tlsSecret=1", "tlsSecret"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, said):
    with pytest.raises(ToolFailed) as refused:
        generate.rendered(generate.preset_file("cpu-demo"), sets=tuple(wrong.split(";")))
    assert said in str(refused.value)


def test_without_a_preset_it_says_what_is_missing():
    with pytest.raises(ToolFailed, match="models"):
        generate.rendered()
