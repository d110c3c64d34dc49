"""Looks at deploy/kubernetes: at its files, and at what kustomize makes of them.

Usage: check.py FOLDER [RENDERED…]      prints the objects of the Prometheus operator as JSON; the rest is judged here
       check.py --environment RENDERED  prints the variables that the gateways get, one a line
"""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "monitoring.coreos.com/v1"
SECRETS = ["session-keys", "redis-password", "sentinel-password"]
problems = []


def problem(place, what):
    problems.append(f"{place}: {what}")


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def name(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def files(folder):
    """Each kustomization names files that are there, each file is named by one, and each patch is for something."""
    named, objects, patched = set(), [], []
    for path in sorted(folder.rglob("kustomization.yaml")):
        named.add(path)
        (kustomization,) = documents(path)
        here = path.parent
        for entry in kustomization.get("resources", []) + kustomization.get("components", []):
            target = (here / entry).resolve()
            if target.is_dir():
                if not (target / "kustomization.yaml").exists():
                    problem(path, f"{entry} has no kustomization.yaml")
            elif target.exists():
                named.add(target)
                objects += documents(target)
            else:
                problem(path, f"{entry} is not there")
        for generator in kustomization.get("configMapGenerator", []):
            named.update((here / entry).resolve() for entry in generator.get("envs", []))
        for patch in kustomization.get("patches", []):
            if "path" in patch:
                named.add((here / patch["path"]).resolve())
                patched += [(path, name(document)) for document in documents(here / patch["path"])]
            else:
                patched.append((path, f"{patch['target']['kind']}/{patch['target']['name']}"))
        for image in kustomization.get("images", []):
            version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
            if image["newTag"] != version:
                problem(path, f"the image is {image['newTag']}, and Cargo.toml says {version}")
    there = {name(thing) for thing in objects}
    for path, target in patched:
        if target not in there:
            problem(path, f"a patch is for {target}, which is nowhere")
    for path in folder.rglob("*"):
        is_other = path.suffix not in (".yaml", ".env") or path.name == "prometheus-adapter.yaml"
        if not is_other and path.resolve() not in {entry.resolve() for entry in named}:
            problem(path, "no kustomization names it")
    return objects


def fits_schema(thing):
    """Kubernetes' own kinds; those of the operator are looked at elsewhere."""
    if thing["apiVersion"] == OPERATOR:
        return
    try:
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        problem(name(thing), f"{'.'.join(map(str, error.path))}: {error.message}")
    except kubernetes_validate.SchemaNotFoundError as error:
        problem(name(thing), error.message)


def is_within(selector, labels):
    return selector.items() <= labels.items()


def environment(things):
    """The variables of the gateways: the ConfigMap that the Deployment names, and their own."""
    (deployment,) = [thing for thing in things if thing["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    maps = {thing["metadata"]["name"]: thing["data"] for thing in things if thing["kind"] == "ConfigMap"}
    found = {}
    for source in container["envFrom"]:
        found |= maps[source["configMapRef"]["name"]]
    return found


def seconds(text):
    return float(text.removesuffix("s"))


def holds_together(folder, place, things):
    """What names something names something that is there."""
    by_name = {name(thing): thing for thing in things}
    deployment = by_name["Deployment/texto"]
    pod = deployment["spec"]["template"]
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    (container,) = spec["containers"]
    ports = {port["name"] for port in container["ports"]}
    variables = environment(things)

    known = set(re.findall(r"TEXTO_[A-Z_]+", (ROOT / "docs/configuration.md").read_text()))
    for variable in variables.keys() - known:
        problem(place, f"{variable} is not in docs/configuration.md")
    bound = sum(seconds(variables.get(variable, default)) for variable, default in
                [("TEXTO_DRAIN_DELAY", "5s"), ("TEXTO_DRAIN_WINDOW", "20s"), ("TEXTO_SEND_TIMEOUT", "5s")]) + 6
    if spec["terminationGracePeriodSeconds"] < bound:
        problem(place, f"a drain may take {bound} s, longer than terminationGracePeriodSeconds")

    # Every file that a variable names lies in something that is mounted, and the example's Secret has those of its own.
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"]}
    for variable, value in variables.items():
        if not value.startswith("/"):
            continue
        mounted, _, file = value.rpartition("/")
        secret = volumes.get(mounts.get(mounted))
        if not secret:
            problem(place, f"{variable}: nothing is mounted at {mounted}")
        elif f"Secret/{secret}" in by_name and file not in by_name[f"Secret/{secret}"]["data"]:
            problem(place, f"{variable}: the Secret {secret} has no {file}")
    if sorted(by_name["Secret/texto"]["data"]) != sorted(SECRETS):
        problem(place, f"the Secret texto has not {SECRETS}")

    # The "restricted" standard for pods, which the example's namespace demands.
    restricted = {
        "runAsNonRoot": spec["securityContext"].get("runAsNonRoot"),
        "seccompProfile": spec["securityContext"].get("seccompProfile", {}).get("type") == "RuntimeDefault",
        "allowPrivilegeEscalation": container["securityContext"].get("allowPrivilegeEscalation") is False,
        "capabilities": container["securityContext"].get("capabilities", {}).get("drop") == ["ALL"],
    }
    for setting, is_kept in restricted.items():
        if not is_kept:
            problem(place, f"{setting} breaks the standard `restricted`")

    for thing in things:
        kind, inner = thing["kind"], thing.get("spec", {})
        if kind == "Deployment" and not is_within(inner["selector"]["matchLabels"], labels):
            problem(name(thing), "its selector does not select its pods")
        if kind == "Service":
            if not is_within(inner["selector"], labels):
                problem(name(thing), "it selects no pod")
            for port in inner["ports"]:
                if port["targetPort"] not in ports:
                    problem(name(thing), f"no container has the port {port['targetPort']}")
        if kind == "PodDisruptionBudget" and not is_within(inner["selector"]["matchLabels"], labels):
            problem(name(thing), "it selects no pod")
        if kind == "NetworkPolicy":
            if not is_within(inner["podSelector"]["matchLabels"], labels):
                problem(name(thing), "it selects no pod")
            allowed = {port["port"] for rule in inner["ingress"] for port in rule["ports"]}
            if allowed != ports:
                problem(name(thing), f"it lets in to {allowed}, and the container has {ports}")
        if kind == "HorizontalPodAutoscaler":
            target = inner["scaleTargetRef"]
            if f"{target['kind']}/{target['name']}" not in by_name:
                problem(name(thing), "what it scales is not there")
            if "replicas" in deployment["spec"]:
                problem(name(thing), "the Deployment says `replicas`, too")
            for metric in inner["metrics"]:
                wanted, target = metric["pods"]["metric"]["name"], int(metric["pods"]["target"]["averageValue"])
                if f'"{wanted}"' not in (ROOT / "src/operate/metrics.rs").read_text():
                    problem(name(thing), f"gateways have no metric {wanted}")
                if target * 2 > int(variables["TEXTO_MAX_CONNECTIONS"]):
                    problem(name(thing), f"at {target} sessions each there is no room for those of a lost one")
                adapter = (folder / "components/autoscaling/prometheus-adapter.yaml").read_text()
                if wanted not in {rule["name"]["as"] for rule in yaml.safe_load(adapter)["rules"]["custom"]}:
                    problem(name(thing), f"prometheus-adapter.yaml makes no {wanted}")
        if kind == "ServiceMonitor":
            services = [service for service in things if service["kind"] == "Service"
                        and is_within(inner["selector"]["matchLabels"], service["metadata"]["labels"])]
            if [service["metadata"]["name"] for service in services] != ["texto-admin"]:
                problem(name(thing), "it selects another Service than texto-admin")
                continue
            if services[0]["metadata"]["labels"].get(inner["jobLabel"]) != "texto":
                problem(name(thing), "the job would not be `texto`, for which the alerts ask")
            if {entry["port"] for entry in inner["endpoints"]} != {port["name"] for port in services[0]["spec"]["ports"]}:
                problem(name(thing), "the Service has no such port")


def main():
    if sys.argv[1] == "--environment":
        for variable, value in environment(documents(Path(sys.argv[2]))).items():
            print(f"{variable}={value}")
        return
    things = files(Path(sys.argv[1]))
    for rendered in map(Path, sys.argv[2:]):
        made = documents(rendered)
        kinds = {thing["kind"] for thing in made}
        missing = {"ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Namespace", "NetworkPolicy", "PodDisruptionBudget",
                   "PrometheusRule", "Secret", "Service", "ServiceMonitor"} - kinds
        if missing:
            problem(rendered.name, f"it has no {missing}")
            continue
        holds_together(Path(sys.argv[1]), rendered.name, made)
        things += made
    for thing in things:
        fits_schema(thing)
    for line in problems:
        print(f"tests/manifest: {line}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"tests/manifest: {len(things)} objects fit the schema, and what they name is there", file=sys.stderr)
    json.dump([thing for thing in things if thing["apiVersion"] == OPERATOR], sys.stdout)


main()
