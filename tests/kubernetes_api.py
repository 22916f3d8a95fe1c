"""As much of a Kubernetes API server as Helm asks when a chart looks things up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

# What the chart has: the kinds of each group's version.
_KINDS = {
    "v1": ("Secret", "Service", "ConfigMap", "PersistentVolumeClaim", "ServiceAccount"),
    "apps/v1": ("StatefulSet",),
    "batch/v1": ("Job", "CronJob"),
    "networking.k8s.io/v1": ("NetworkPolicy", "Ingress"),
    "policy/v1": ("PodDisruptionBudget",),
    "ray.io/v1": ("RayService",),
}


def _group(version: str) -> str:
    return "/api/v1" if version == "v1" else f"/apis/{version}"


def _resources(version: str) -> dict[str, Any]:
    named = [{"name": f"{k.lower()}s", "kind": k, "namespaced": True} for k in _KINDS[version]]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": named}


def _groups() -> list[dict[str, Any]]:
    named = [(version.partition("/")[0], version) for version in _KINDS if "/" in version]
    return [
        {"name": name, "versions": [{"groupVersion": version, "version": "v1"}]}
        for name, version in named
    ]


_DISCOVERY = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": _groups()},
    **{_group(version): _resources(version) for version in _KINDS},
}


@contextmanager
def kubernetes_api(*objects: dict[str, Any]) -> Iterator[str]:
    """The URL of one that has these objects."""
    there = _DISCOVERY | {_path(made): made for made in objects}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = there.get(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "reason": "NotFound", "code": 404})
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _path(made: dict[str, Any]) -> str:
    where, kind = made["metadata"], made["kind"].lower()
    return f"{_group(made['apiVersion'])}/namespaces/{where['namespace']}/{kind}s/{where['name']}"
