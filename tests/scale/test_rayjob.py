"""The RayJob for Kubernetes has only fields that KubeRay's reference names, and what the page says of it."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import REPOSITORY

# Fields of KubeRay 1.7's reference, ray.io/v1; those of pods are Kubernetes' own.
FIELDS = {
    "RayJobSpec": """activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus
        entrypointNumGpus entrypointResources jobId managedBy metadata rayClusterSpec runtimeEnvYAML
        shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished""",
    "RayClusterSpec": """authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec
        headServiceAnnotations managedBy rayVersion suspend workerGroupSpecs""",
    "AuthOptions": "enableK8sTokenAuth mode secretName",
    "AutoscalerOptions": """env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode
        version volumeMounts""",
    "HeadGroupSpec": "enableIngress headService rayStartParams serviceType template",
    "WorkerGroupSpec": """groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts rayStartParams replicas
        scaleStrategy suspend template""",
    "PodSpec": "affinity containers nodeSelector terminationGracePeriodSeconds tolerations volumes",
    "Container": "command env image name resources volumeMounts",
}


def of_kind(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    assert set(fields) <= set(FIELDS[kind].split()), kind
    return fields


def test_fields_and_what_they_say() -> None:
    job = yaml.safe_load((REPOSITORY / "docs/scale/rayjob.yaml").read_text())
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = of_kind("RayJobSpec", job["spec"])
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    cluster = of_kind("RayClusterSpec", spec["rayClusterSpec"])
    assert of_kind("AuthOptions", cluster["authOptions"]) == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    of_kind("AutoscalerOptions", cluster["autoscalerOptions"])
    head, (workers,) = of_kind("HeadGroupSpec", cluster["headGroupSpec"]), cluster["workerGroupSpecs"]
    of_kind("WorkerGroupSpec", workers)
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    pods = [of_kind("PodSpec", group["template"]["spec"]) for group in (head, workers)]
    for pod in pods:
        (container,) = pod["containers"]
        of_kind("Container", container)
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        for amounts in container["resources"].values():
            assert all(isinstance(amount, str) for amount in amounts.values()), "numbers are quoted"
    assert "nvidia.com/gpu" not in pods[0]["containers"][0]["resources"]["limits"]
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "'operator': 'DoesNotExist'" in str(pods[0]["affinity"])
    assert "gke-spot" in str(pods[1]["nodeSelector"])
    assert "--engine ray" in spec["entrypoint"]
    assert f"--workers {workers['maxReplicas']} --gpus-per-worker 1" in spec["entrypoint"]
