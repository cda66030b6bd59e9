"""Take from Kubernetes' own OpenAPI document the schemas of the kinds that the chart makes.

    go mod download -json k8s.io/kubernetes@v1.34.4      # says where it lies: Dir
    python tests/deployment/kubernetes/extract.py DIR > tests/deployment/kubernetes/v1.34.json

Descriptions, defaults and rules of patches are left out, unknown fields refused: what remains
says which manifests an API server takes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

KINDS: Final = (
    ("apis__apps__v1", "io.k8s.api.apps.v1.Deployment"),
    ("apis__apps__v1", "io.k8s.api.apps.v1.StatefulSet"),
    ("apis__batch__v1", "io.k8s.api.batch.v1.Job"),
    ("api__v1", "io.k8s.api.core.v1.Service"),
    ("api__v1", "io.k8s.api.core.v1.ServiceAccount"),
    ("apis__networking.k8s.io__v1", "io.k8s.api.networking.v1.NetworkPolicy"),
    ("apis__policy__v1", "io.k8s.api.policy.v1.PodDisruptionBudget"),
    ("apis__autoscaling__v2", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"),
)
_KEPT: Final = ("type", "format", "enum", "required", "pattern", "minimum", "maximum")
_QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_EITHER: Final = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"


def main(folder: Path) -> None:
    definitions: dict[str, Any] = {}
    for document, kind in KINDS:
        text = (folder / "api" / "openapi-spec" / "v3" / f"{document}_openapi.json").read_text()
        take(kind, json.loads(text)["components"]["schemas"], definitions)
    json.dump({"definitions": definitions}, sys.stdout, sort_keys=True, separators=(",", ":"))
    sys.stdout.write("\n")


def take(name: str, source: dict[str, Any], into: dict[str, Any]) -> None:
    """Take a definition and those that it names."""
    if name in into:
        return
    if name in {_QUANTITY, _EITHER}:
        into[name] = {"type": ["string", "number"]}
        return
    into[name] = {}
    into[name] = plain(source[name], source, into)


def plain(schema: dict[str, Any], source: dict[str, Any], into: dict[str, Any]) -> dict[str, Any]:
    """Give a schema without what says nothing of which manifests are taken."""
    if len(schema.get("allOf", ())) == 1:
        schema = schema["allOf"][0]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        take(name, source, into)
        return {"$ref": f"#/definitions/{name}"}
    found: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        found["properties"] = {
            name: plain(each, source, into) for name, each in schema["properties"].items()
        }
        found["additionalProperties"] = False
    elif "additionalProperties" in schema:
        found["additionalProperties"] = plain(schema["additionalProperties"], source, into)
    if "items" in schema:
        found["items"] = plain(schema["items"], source, into)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
