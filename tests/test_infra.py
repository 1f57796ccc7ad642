"""What a machine without Docker can tell of infra/: it reads, names what exists, and holds no secret."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hcl2
import kubernetes_validate
import pytest
import yaml

from infra.local import WAVES, Topology, services
from ip2p.params import ServeParams
from ip2p.stages import STAGES

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_compose_runs_the_services_that_run_on_one_machine(tmp_path):
    local = {s.name for s in services(Topology.new(tmp_path / "infra"))}
    assert local <= set(COMPOSE["services"])
    assert local == {name for wave in WAVES for name in wave}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_waits_for_services_that_are_there_and_publishes_on_loopback_alone(name):
    service = COMPOSE["services"][name]
    for other, how in service.get("depends_on", {}).items():
        awaited = COMPOSE["services"][other]
        assert how["condition"] == "service_completed_successfully" or "healthcheck" in awaited
    assert all(p.startswith("127.0.0.1:") for p in service.get("ports", []))
    assert "image" in service


def test_secrets_come_from_the_environment_alone():
    text = (ROOT / "infra/compose.yaml").read_text()
    for line in text.splitlines():
        if re.search(r"(PASSWORD|SECRET|_KEY|API_KEYS)\w*:", line) and "${" not in line:
            raise AssertionError(line)
    assert not re.search(r":[^/$@\s]+@", text)


def test_the_image_copies_files_that_are_there():
    for line in (ROOT / "infra/images/Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            assert all((ROOT / s).exists() for s in sources), line


def test_the_image_has_all_that_stages_read_and_no_stage_makes():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    copied = [
        Path(s) for x in (ROOT / "infra/images/Dockerfile").read_text().splitlines() if x.startswith("COPY ") for s in x.split()[1:-1]
    ]
    names = [next(iter(x)) if isinstance(x, dict) else x for s in stages for k in ("outs", "metrics") for x in s.get(k, ())]
    made = [Path(n) for n in names]
    for wanted in {Path(d) for s in stages for d in s.get("deps", ())}:
        assert any(p in (wanted, *wanted.parents) for p in copied + made), wanted


def test_no_server_is_told_a_secret_on_its_command_line(tmp_path):
    topology = Topology.new(tmp_path / "infra")
    commands = [part for s in services(topology) for part in s.command]
    assert not [c for c in commands for secret in topology.secret.values() if secret in c]


def test_a_workers_versions_and_cache_outlive_its_container(tmp_path):
    bare, state = tmp_path / "image", tmp_path / "volume"
    for container in ("first", "second"):
        home = bare / container
        home.mkdir(parents=True)
        state.mkdir(exist_ok=True)
        (home / "work").symlink_to(state)
        (home / "word.txt").write_text("hello\n")
        (home / "dvc.yaml").write_text("stages: {say: {cmd: cp word.txt hello.txt, deps: [word.txt], outs: [hello.txt]}}")
        (home / "prefect").write_text("#!/bin/sh\ndvc repro && dvc push")
        (home / "prefect").chmod(0o755)
        path = f"{home}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "IP2P_DATA_URL": str(tmp_path / "bucket")}
        environment.pop("AWS_ENDPOINT_URL", None)
        subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=home, env=environment, check=True)
        ran = subprocess.run([ROOT / "infra/images/worker.sh"], cwd=home, env=environment, check=True, capture_output=True, text=True)
        assert ("Running stage" in ran.stdout) == (container == "first")  # the second has what the first made
        assert (home / "hello.txt").read_text() == "hello\n"
    assert any((tmp_path / "bucket").rglob("*"))


def documents():
    for path in sorted((ROOT / "infra/kubernetes").rglob("*.yaml")):
        for told in yaml.safe_load_all(path.read_text()):
            if isinstance(told, dict):
                yield path, told


def test_manifests_are_what_kubernetes_reads_and_name_files_that_are_there():
    kinds = set()
    for path, told in documents():
        if told["kind"] == "Kustomization":
            wanted = [*told["resources"], *(p["path"] for p in told.get("patches", ()))]
            wanted += [e for c in told.get("configMapGenerator", ()) for e in c["envs"]]
            assert all((path.parent / w).exists() for w in wanted)
        elif told["apiVersion"] != "ray.io/v1":  # of KubeRay's operator, not Kubernetes'
            kubernetes_validate.validate(told, kubernetes_validate.latest_version(), strict=True)
        kinds.add(told["kind"])
    assert {"Deployment", "StatefulSet", "Service", "RayCluster"} <= kinds


def test_no_container_runs_as_root_or_gains_rights():
    pods, scales = [], []
    for _, told in documents():
        spec = told.get("spec", {})
        if told["kind"] == "RayCluster":
            assert spec["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
            scales.append(spec["headGroupSpec"]["template"]["spec"])  # asks for workers, and so has an account
            pods += [g["template"]["spec"] for g in spec["workerGroupSpecs"]]
        elif "template" in spec:
            pods.append(spec["template"]["spec"])
    assert (len(pods), len(scales)) == (3, 1)
    assert not any(pod["automountServiceAccountToken"] for pod in pods)
    for pod in (*pods, *scales):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert not container["securityContext"].get("privileged") and container["securityContext"].get("runAsNonRoot", True)
            assert container["securityContext"].get("runAsUser", 1)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_who_has_its_token_reaches_the_ray_cluster():
    told = {(d["kind"], d["metadata"]["name"]): d["spec"] for _, d in documents() if "metadata" in d and "spec" in d}
    cluster, gate = told["RayCluster", "ray"], told["NetworkPolicy", "ray"]
    assert cluster["authOptions"] == {"mode": "token"} and gate["ingress"] == [{"from": [{"podSelector": {}}]}]
    (patch,) = yaml.safe_load((ROOT / "infra/kubernetes/gpu/ray-client.yaml").read_text())
    mode, token = patch["value"]
    assert mode == {"name": "RAY_AUTH_MODE", "value": "token"} and token["valueFrom"]["secretKeyRef"]["name"] == "ray"
    assert (
        patch["path"] == "/spec/template/spec/containers/0/env"
        and "env" not in told["StatefulSet", "worker"]["template"]["spec"]["containers"][0]
    )


def test_the_image_has_ray_and_both_overlays_name_the_same_image():
    assert ".[infra,ray]" in (ROOT / "infra/images/Dockerfile").read_text()
    images = [told["images"] for _, told in documents() if told["kind"] == "Kustomization"]
    assert len(images) == 2 and images[0] == images[1]


def test_terraform_reads_names_what_it_makes_and_makes_nothing_public():
    text = (ROOT / "infra/terraform/main.tf").read_text()
    made = {f"{kind}.{name}".replace('"', "") for r in hcl2.loads(text)["resource"] for kind, named in r.items() for name in named}
    assert {f"{kind}.{name}" for kind, name in re.findall(r"\b(aws_\w+)\.(\w+)\.", text)} <= made | {
        f"aws_iam_policy_document.{n}" for n in ("data", "trust")
    }
    assert re.search(r"publicly_accessible\s+= false", text) and "0.0.0.0/0" not in text
    assert not re.search(r"password\s*=\s*\"", text)


def test_deployments_name_flows_that_are_there():
    import importlib

    for deployment in DEPLOYMENTS:
        path, name = deployment["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        assert flow.name == deployment["name"]
        assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)
    assert {d["name"] for d in DEPLOYMENTS} == {"pipeline", *STAGES} - {"report"}


def test_out_of_the_box_only_this_machine_is_served():
    assert ServeParams().host == "127.0.0.1"
