"""What a machine without Docker can tell of infra/: it reads, names what exists, and holds no secret."""

import re
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
    for _, told in documents():
        if told["kind"] in ("Deployment", "StatefulSet"):
            pod = told["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
            assert all(c["securityContext"]["allowPrivilegeEscalation"] is False for c in pod["containers"])


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
