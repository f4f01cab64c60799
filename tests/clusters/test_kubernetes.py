"""Kubernetes and KubeRay take the manifests: every field is known, of its type, and none is missing."""

from pathlib import Path

import pytest
import yaml
from cluster_files import changed, documents_of, without
from jsonschema import Draft202012Validator
from kubernetes_objects import faults, template_faults

KUBERAY = Draft202012Validator(yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text(encoding="utf-8")))
RAY = ("kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml")
MLFLOW = "mlflow/kubernetes.yaml"
PLAIN = ("kubernetes/network-policy.yaml", MLFLOW)


def cluster_of(document):
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def ray_faults(document):
    """What KubeRay's and Kubernetes' schemas find wrong."""
    found = [error for top in KUBERAY.iter_errors(document) for error in (top, *(top.context or ()))]
    cluster = cluster_of(document)
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [error.message for error in found] + [fault for template in templates for fault in template_faults(template)]


def ray_document(name):
    (document,) = documents_of(name)
    return document


def containers_of(document):
    """All containers of a document, each with the place of its pod."""
    if document["kind"] in ("RayJob", "RayCluster"):
        cluster = cluster_of(document)
        pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    else:
        pods = [document["spec"]["template"]["spec"]] if "template" in document["spec"] else []
    return [(pod, container) for pod in pods for container in pod["containers"]]


# ── Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", RAY)
def test_kuberay_takes_the_file(name):
    assert not ray_faults(ray_document(name))


POD = "headGroupSpec.template.spec"


@pytest.mark.parametrize("name", RAY)
@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("workerGroupSpecs.0.maxReplica", 4, "maxReplica"),
        ("workerGroupSpecs.0.minReplicas", "0", "'0' is not of type 'integer'"),
        ("autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("workerGroupSpecs.0.template.spec.toleration", [], "spec.toleration: Extra inputs are not permitted"),
        (f"{POD}.containers.0.resource", {}, "spec.containers.0.resource: Extra inputs are not permitted"),
        (f"{POD}.containers.0.resources.limits.memory", "8 GB", "limits.memory: '8 GB'"),
        (f"{POD}.securityContext.runAsUser", "1000", "runAsUser: Input should be a valid integer"),
    ],
)
def test_a_wrong_field_is_refused(name, path, value, fault):
    document = ray_document(name)
    place = "spec.rayClusterSpec" if document["kind"] == "RayJob" else "spec"
    found = ray_faults(changed(document, f"{place}.{path}", value))
    assert any(fault in line for line in found), found


@pytest.mark.parametrize("path", ["workerGroupSpecs.0.groupName", f"{POD}.containers.0.name"])
def test_a_missing_field_is_refused(path):
    assert ray_faults(without(ray_document("kubernetes/raycluster.yaml"), f"spec.{path}"))


def test_a_field_of_a_job_is_none_of_a_cluster():
    cluster = ray_document("kubernetes/raycluster.yaml")
    assert ray_faults(changed(cluster, "spec.backoffLimit", 2))


@pytest.mark.parametrize("name", RAY)
def test_workers_come_from_zero_and_the_head_takes_no_trial(name):
    cluster = cluster_of(ray_document(name))
    (gpu,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (gpu["replicas"], gpu["minReplicas"]) == (0, 0) < (gpu["maxReplicas"],)
    (worker,) = gpu["template"]["spec"]["containers"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"]["mode"] == "token"


def test_job_and_cluster_describe_the_same_cluster():
    cluster, job = map(ray_document, RAY)
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


def test_the_job_can_be_created_again_and_takes_its_cluster_along():
    job = ray_document("kubernetes/rayjob.yaml")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["entrypoint"].startswith("prunesearch run ")
    assert set(job["metadata"]) == {"generateName"}


@pytest.mark.parametrize("name", ["kubernetes/rayjob.yaml", "kubernetes/raycluster.yaml"])
def test_mlflows_password_is_where_the_sweeps_own_process_runs_and_nowhere_else(name):
    spec = ray_document(name)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["envFrom"] == [{"secretRef": {"name": "prunesearch-tracking", "optional": True}}]
    for group in spec["workerGroupSpecs"]:
        assert all("envFrom" not in container for container in group["template"]["spec"]["containers"])


# ── what is Kubernetes' own ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PLAIN)
def test_kubernetes_takes_the_file(name):
    assert not [fault for document in documents_of(name) for fault in faults(document)]


@pytest.mark.parametrize(
    ("kind", "path", "value", "fault"),
    [
        ("Deployment", "spec.replica", 1, "spec.replica: Extra inputs are not permitted"),
        (
            "Deployment",
            "spec.template.spec.containers.0.startupProbe.httpGet.prt",
            1,
            "prt: Extra inputs are not permitted",
        ),
        ("Deployment", "spec.replicas", "1", "spec.replicas: Input should be a valid integer"),
        ("Deployment", "spec.selector", None, "spec.selector: Input should be a valid dictionary"),
        ("Service", "spec.ports.0.port", "x", "ports.0.port: Input should be a valid integer"),
        (
            "StatefulSet",
            "spec.volumeClaimTemplates.0.spec.accessModes",
            "RWO",
            "accessModes: Input should be a valid list",
        ),
        ("NetworkPolicy", "spec.ingress.0.form", [], "spec.ingress.0.form: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_field_of_kubernetes_is_refused(kind, path, value, fault):
    document = next(document for document in documents_of(MLFLOW) if document["kind"] == kind)
    found = faults(changed(document, path, value))
    assert any(fault in line for line in found), found


def test_a_missing_field_of_kubernetes_is_refused():
    deployment = documents_of(MLFLOW)[0]
    assert any("selector" in fault for fault in faults(without(deployment, "spec.selector")))


@pytest.mark.parametrize("name", [*RAY, MLFLOW])
def test_no_container_runs_as_root_or_can_become_it(name):
    for document in documents_of(name):
        for pod, container in containers_of(document):
            assert pod["securityContext"]["runAsNonRoot"] is True
            rights = container["securityContext"]
            assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_services_and_policies_meet_their_pods():
    named = {(document["kind"], document["metadata"]["name"]): document["spec"] for document in documents_of(MLFLOW)}
    for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "mlflow-database")):
        template = named[kind, name]["template"]
        service, policy = named["Service", name], named["NetworkPolicy", name]
        assert service["selector"] == policy["podSelector"]["matchLabels"] == template["metadata"]["labels"]
        (port,) = template["spec"]["containers"][0]["ports"]
        (door,), (rule,) = service["ports"], policy["ingress"]
        assert (door["port"], door["targetPort"]) == (port["containerPort"], port["name"])
        assert rule["ports"] == [{"port": port["containerPort"]}]
        assert "type" not in service  # ClusterIP: nothing outside the cluster reaches it


def test_mlflow_finds_its_database_and_is_asked_how_it_does():
    deployment, *_ = documents_of(MLFLOW)
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "PGHOST", "value": "mlflow-database"} in server["env"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_passwords_come_from_a_secret_that_is_not_in_the_file():
    documents = documents_of(MLFLOW)
    assert "Secret" not in {document["kind"] for document in documents}
    given = {
        variable["name"]: variable
        for document in documents
        for _, container in containers_of(document)
        for variable in container["env"]
    }
    assert "secretKeyRef" in given["POSTGRES_PASSWORD"]["valueFrom"]
    assert not [name for name, each in given.items() if "value" in each and ("PASSWORD" in name or "KEY" in name)]
