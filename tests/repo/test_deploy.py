"""What is in deploy/: valid for Kubernetes, Helm and the engines, and in agreement with itself and its documents."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from deploy.installer import kube
from hako.version import __version__
from support import helm, schemas, source
from support.helm import HelmRefusal

CHART = os.path.join(source.CLONE, "deploy", "helm", "hako")
DOCUMENT = source.read("docs/kubernetes.md")
MANIFESTS = source.files(".yaml", under="deploy/manifests")
SAMPLES = source.files(".yaml", under="deploy/samples")
#: Values that change all that values can change. Helm merges tables; None takes a default out.
OTHER = {
    "image": {"repository": "registry.example/x", "tag": "7", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "secret"}],
    "nodeSelector": {"dev.hako/install": None, "pool": "vms"},
    "tolerations": [{"key": "vms", "operator": "Exists", "effect": "NoSchedule"}],
    "engine": "crio",
    "sandboxer": "shim",
    "containerdConfig": "/srv/containerd.toml",
    "overhead": {"memory": "416Mi", "cpu": "1.5"},
    "resources": {"requests": None, "limits": {"memory": "100Mi"}},
}


def objects(*paths: str) -> list[dict[str, Any]]:
    """All objects in the YAML files."""
    return [found for path in paths for found in yaml.safe_load_all(source.read(path))]


def one(kind: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    """The only object of its kind."""
    (found,) = [item for item in among if item["kind"] == kind]
    return found


def values() -> dict[str, Any]:
    """The chart's default values: the one place of the overhead."""
    found: dict[str, Any] = yaml.safe_load(source.read("deploy/helm/hako/values.yaml"))
    return found


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_all_objects_are_valid(version: str) -> None:
    found = objects(*MANIFESTS, *SAMPLES)
    for chosen in ({}, OTHER):
        rendered = helm.render(CHART, chosen)
        assert rendered.complaints == []
        found += rendered.objects
    assert {item["kind"] for item in found} >= {"RuntimeClass", "DaemonSet", "Job", "ClusterRole", "Pod", "Deployment"}
    assert [line for item in found for line in schemas.complaints(item, version)] == []


def test_what_is_not_valid_is_noticed() -> None:
    good = one("RuntimeClass", objects(*MANIFESTS))
    assert schemas.complaints({**good, "handlre": "x"}, "1.31") != []
    assert schemas.complaints({**good, "handler": 1}, "1.31") != []
    assert schemas.complaints({**good, "apiVersion": "node.k8s.io/v9"}, "1.31") != []


def test_the_manifests_are_what_the_chart_makes() -> None:
    plain = {_key(item): _without_helm(item) for item in helm.render(CHART).objects if not _is_hook(item)}
    written = {_key(item): item for item in objects(*MANIFESTS)}
    namespace = written.pop(("Namespace", "hako-system"))
    assert written == plain
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def _is_hook(item: dict[str, Any]) -> bool:
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


def _without_helm(item: dict[str, Any]) -> dict[str, Any]:
    labels = item["metadata"]["labels"]
    kept = {key: value for key, value in labels.items() if key not in ("app.kubernetes.io/managed-by", "helm.sh/chart")}
    return {**item, "metadata": {**item["metadata"], "labels": kept}}


def test_every_value_is_used() -> None:
    assert OTHER.keys() == values().keys()
    made = helm.render(CHART, OTHER, "elsewhere").objects
    pod = one("DaemonSet", made)["spec"]["template"]["spec"]
    container = pod["containers"][0]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert container["image"] == "registry.example/x:7"
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"] == {"limits": {"memory": "100Mi"}}
    assert environment["HAKO_ENGINE"] == "crio"
    assert environment["HAKO_SANDBOXER"] == "shim"
    assert environment["HAKO_CONTAINERD_CONFIG"] == "/srv/containerd.toml"
    assert pod["nodeSelector"] == {"pool": "vms"}
    runtime_class = one("RuntimeClass", made)
    assert runtime_class["overhead"]["podFixed"] == OTHER["overhead"]
    job = one("Job", made)["spec"]["template"]["spec"]
    for spec in (pod, job):
        assert spec["tolerations"] == OTHER["tolerations"]
        assert spec["imagePullSecrets"] == OTHER["imagePullSecrets"]
    assert runtime_class["scheduling"]["tolerations"] == OTHER["tolerations"]
    places = {item["metadata"]["namespace"] for item in made if "namespace" in item["metadata"]}
    assert places == {"elsewhere"}
    assert {place["namespace"] for item in made for place in item.get("subjects", [])} == {"elsewhere"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "docker"},
        {"sandboxer": True},
        {"overhead": {"memory": 160, "cpu": "50m"}},
        {"overhead": {"memory": "160M", "cpu": "50m"}},
        {"overhead": {"memory": "160Mi", "cpu": "fast"}},
        {"nodeSelector": {"a": True}},
        {"containerdConfig": "config.toml"},
        {"image": {"repository": "", "tag": "", "pullPolicy": "Never"}},
        {"enginee": "auto"},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HelmRefusal, match="values don't meet the specifications of the schema"):
        helm.render(CHART, wrong)


def test_the_overhead_is_the_same_everywhere() -> None:
    overhead = values()["overhead"]
    assert one("RuntimeClass", objects(*MANIFESTS))["overhead"]["podFixed"] == overhead
    assert f"| `overhead.memory`, `overhead.cpu` | `{overhead['memory']}`, `{overhead['cpu']}` |" in DOCUMENT
    assert f"| `memory` | `{overhead['memory']}` |" in DOCUMENT
    assert f"| `cpu` | `{overhead['cpu']}` |" in DOCUMENT
    assert set(re.findall(r"their sum and (\w+) for everything", DOCUMENT)) == {overhead["cpu"]}


def test_names_agree() -> None:
    made = helm.render(CHART).objects
    runtime_class, daemonset, job = (one(kind, made) for kind in ("RuntimeClass", "DaemonSet", "Job"))
    assert runtime_class["scheduling"]["nodeSelector"] == {kube.LABEL: "ready"}
    name = daemonset["metadata"]["name"]
    assert one("Role", made)["rules"][0]["resourceNames"] == [name]
    account = one("ServiceAccount", made)["metadata"]["name"]
    script = source.read("deploy/installer/node.sh") + source.read("deploy/installer/kube.py")
    for item in (daemonset, job):
        spec = item["spec"]["template"]["spec"]
        environment = {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}
        assert environment["DAEMONSET"] == name
        assert spec["serviceAccountName"] == account
        assert [variable for variable in environment if variable not in script] == []
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][-1] in (kube.__doc__ or "")
    assert job["spec"]["activeDeadlineSeconds"] > daemonset["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    probe = daemonset["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    assert f"HAKO_READY_FILE:-{probe[-1]}}}" in source.read("deploy/installer/node.sh")


def test_versions_agree() -> None:
    chart = yaml.safe_load(source.read("deploy/helm/hako/Chart.yaml"))
    assert chart["appVersion"] == __version__
    image = one("DaemonSet", objects(*MANIFESTS))["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"hako-installer:{__version__}"
    for path in ("docs/kubernetes.md", "deploy/installer/Containerfile"):
        assert set(re.findall(r"hako-installer:([\w.]+)", source.read(path))) == {__version__}


@pytest.mark.parametrize("name", ["containerd/hako-v2.toml", "containerd/hako-v3.toml", "containerd/hako-v3-shim.toml"])
def test_the_snippets_name_the_handler(name: str) -> None:
    settings = tomllib.loads(source.read(f"deploy/{name}"))
    version = int(re.findall(r"-v(\d)", name)[0])
    assert settings["version"] == version
    plugin = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[version]
    handler = one("RuntimeClass", objects(*MANIFESTS))["handler"]
    runtime = settings["plugins"][plugin]["containerd"]["runtimes"][handler]
    assert runtime["runtime_type"] == "io.containerd.hako.v2"
    assert runtime.get("sandboxer") == ("shim" if "shim" in name else None)
    assert runtime["pod_annotations"] == ["dev.hako.*", "io.katacontainers.*"]


def test_crio_takes_the_drop_in() -> None:
    runtime = tomllib.loads(source.read("deploy/crio/50-hako.conf"))["crio"]["runtime"]["runtimes"]["hako"]
    # CRI-O insists on a shim's name for runtimes of the type vm.
    assert re.fullmatch(r".*/containerd-shim-([a-zA-Z0-9\-+])+-v2", runtime["runtime_path"])
    assert runtime["runtime_type"] == "vm"
    # It knows no annotations but its own, and does not start with others.
    assert "allowed_annotations" not in runtime


def test_samples_use_the_class_that_there_is() -> None:
    name = one("RuntimeClass", objects(*MANIFESTS))["metadata"]["name"]
    for path in SAMPLES:
        specs = [item["spec"].get("template", item).get("spec", {}) for item in objects(path) if "spec" in item]
        assert {spec.get("runtimeClassName") for spec in specs if "containers" in spec} - {None} == {name}
        assert path in DOCUMENT


def test_annotations_of_samples_and_document_exist() -> None:
    known = source.read("docs/configuration.md")
    used = {key for path in SAMPLES for key in re.findall(r"\bdev\.hako\.[a-z-]+", source.read(path))}
    used |= set(re.findall(r"\bdev\.hako\.[a-z-]+", DOCUMENT))
    assert used
    assert [key for key in used if f"`{key}`" not in known] == []


def test_the_image_gets_what_there_is() -> None:
    text = source.read("deploy/installer/Containerfile")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "src", "scripts", "deploy"}
    ignored = source.read("deploy/installer/Containerfile.dockerignore").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    entry = re.findall(r'^ENTRYPOINT \["/usr/local/share/hako/source/(.*)"\]$', text, re.MULTILINE)
    assert [os.path.exists(os.path.join(source.CLONE, path)) for path in entry] == [True]
    (program,) = re.findall(r"requires=\$\((sed .*)\) ", text)
    requires = subprocess.run(
        ["sh", "-c", program.replace("/source/", "")], cwd=source.CLONE, capture_output=True, text=True, check=True
    ).stdout
    assert [requires.strip()] == tomllib.loads(source.read("pyproject.toml"))["build-system"]["requires"]


def test_shellcheck_has_no_complaint_about_the_installer() -> None:
    scripts = source.files(".sh", under="deploy")
    assert scripts
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=source.CLONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert all(os.access(os.path.join(source.CLONE, path), os.X_OK) for path in scripts)
