"""The files for Kubernetes against the schemas of its API, with the job as Prefect's own worker makes it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from jsonschema import ValidationError
from prefect.client.schemas.objects import FlowRun

pytestmark = pytest.mark.cluster

VERSIONS = ("1.25", "1.37")  # the oldest and the newest that kubernetes-validate 1.37 has
MISSING = "not installed; `make test-cluster` installs it"


def validate(manifest: dict[str, Any], version: str) -> None:
    """Check a manifest; unknown fields are errors, too."""
    library = pytest.importorskip("kubernetes_validate", reason=f"kubernetes-validate is {MISSING}")
    assert library.validate(manifest, version, strict=True) == version


def job(root: Path, **variables: Any) -> dict[str, Any]:
    """The job that Prefect's worker creates from the work pool for a flow run with these job variables."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason=f"prefect-kubernetes is {MISSING}")
    template = json.loads((root / "deploy/kubernetes/pool.json").read_text())
    nobody: Any = object()  # instead of a client, which would start a server: the template refers to no block
    making = worker.KubernetesWorkerJobConfiguration.from_template_and_values(template, variables, client=nobody)
    configuration = asyncio.run(making)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="train@kd"))
    manifest: dict[str, Any] = configuration.job_manifest
    return manifest


@pytest.mark.parametrize("version", VERSIONS)
def test_the_namespace_and_its_cache_follow_the_schemas(root: Path, version: str) -> None:
    manifests = list(yaml.safe_load_all((root / "deploy/kubernetes/avdistill.yaml").read_text()))
    assert [manifest["kind"] for manifest in manifests] == ["Namespace", "PersistentVolumeClaim"]
    for manifest in manifests:
        validate(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_of_a_stage_follows_the_schema(root: Path, version: str) -> None:
    """With what flows/pool.py sends."""
    made = job(root, env={"AV_COMMIT": "abc", "AV_REPOSITORY": "ssh://10.0.0.1/srv/avdistill.git"}, gpus=0)
    pod = made["spec"]["template"]["spec"]
    # Prefect refuses a job without these two, which Kubernetes has one level up.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    validate(made, version)
    pod["containers"][0]["resource"] = {}
    with pytest.raises(ValidationError, match="resource"):
        validate(made, version)


def test_the_job_has_what_the_stage_needs(root: Path) -> None:
    made = job(root, env={"AV_COMMIT": "abc"}, gpus=0)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert made["metadata"]["namespace"] == "avdistill"
    assert {"name": "AV_COMMIT", "value": "abc"} in container["env"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["envFrom"] == [{"secretRef": {"name": "avdistill"}}]
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 0}
