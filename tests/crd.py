"""The RayService CRD as a check that refuses what the API server would drop or refuse."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

CRD = Path(__file__).parents[2] / "shared" / "data" / "kuberay" / "ray.io_rayservices.yaml"


@cache
def ray_service_validator() -> Draft202012Validator:
    versions = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    metadata = schema["properties"].pop("metadata")
    strict = _strict(schema)
    strict["properties"]["metadata"] = metadata
    return Draft202012Validator(strict)


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("anyOf", None)
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    fields = made.get("properties")
    # A field may be called `properties`: then it is a schema, and its parent no object's.
    if made.get("type") == "object" and isinstance(fields, dict):
        # The server fills defaults in before it validates.
        made["required"] = [k for k in made.get("required", ()) if "default" not in fields[k]]
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made
