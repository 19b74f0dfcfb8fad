"""Everything under deploy/ that can be proved without the programs it is for: that it parses, that what it
names exists (metrics, labels, files, ports, paths, keys, runbooks), that rules fire and stay silent as told.
"""

import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forecaster.cli.daemon import Role
from forecaster.config import TrainingSpec, load
from forecaster.demo import ticks
from forecaster.demo.ticks import parse
from forecaster.errors import (
    BrokerError,
    BugError,
    BusyError,
    ConfigError,
    DataError,
    FencedError,
    StuckError,
)
from forecaster.shell.http import HttpSpec
from forecaster.shell.metrics import Metrics

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "operations.md"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
ADDED_BY_PROMETHEUS = {"job", "instance"}
PROMETHEUS_OWN = {"up", "ALERTS"}

METRIC = re.compile(r"\b(?:forecaster_|process_|python_|up\b|ALERTS\b|(?:job|instance)\w*:)[\w:]*")
SELECTOR = re.compile(rf"({METRIC.pattern})\{{([^}}]*)\}}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


class Use(NamedTuple):
    """A query, and where it stands."""

    where: str
    query: str


@cache
def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def exposed() -> Mapping[str, dict[str, set[str]]]:
    """Samples that a worker exposes: name -> label -> values."""
    metrics = Metrics(horizon=12, levels=(0.05, 0.1, 0.5, 0.9, 0.95))
    metrics.set_lag({0: 0})
    metrics.set_expert_weights(["last_value"], [1.0])
    metrics.set_serving("v1", "gru", 1.0, 1.0)
    metrics.observe_series("a", 1.0, metrics.scored.read().reshape(-1, 1).repeat(5, 1))
    samples: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            labels = samples.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return samples


def rules(kind: str) -> Iterator[dict[str, Any]]:
    """Rules of a kind: "record" or "alert"."""
    for file in ("rules.yml", "alerts.yml"):
        for group in read_yaml(DEPLOY / "prometheus" / file)["groups"]:
            yield from (rule for rule in group["rules"] if kind in rule)


ALERTS = {rule["alert"]: rule for rule in rules("alert")}


def panels(path: Path) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row")


def uses() -> Iterator[Use]:
    """Every query of rules, alerts and dashboards."""
    for rule in (*rules("record"), *rules("alert")):
        yield Use(rule.get("record") or rule["alert"], rule["expr"])
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield Use(f"{path.stem}: {panel['title']}", target["expr"])
        board = json.loads(path.read_text())
        for annotation in board["annotations"]["list"]:
            yield Use(f"{path.stem}: {annotation['name']}", annotation["expr"])
        for variable in board["templating"]["list"]:
            if found := re.match(r"label_values\((.*), \w+\)", str(variable["query"])):
                yield Use(f"{path.stem}: ${variable['name']}", found[1])


# --- names ---


def test_every_metric_named_in_rules_and_dashboards_exists() -> None:
    known = exposed().keys() | PROMETHEUS_OWN | {rule["record"] for rule in rules("record")}
    unknown = {(use.where, name) for use in uses() for name in METRIC.findall(use.query) if name not in known}
    assert not unknown


def test_every_label_and_value_in_a_selector_exists() -> None:
    wrong = {
        (use.where, metric, matcher)
        for use in uses()
        for metric, matchers in SELECTOR.findall(use.query)
        if metric in exposed()
        for matcher in MATCHER.findall(matchers)
        if not matches_something(metric, *matcher)
    }
    assert not wrong


def matches_something(metric: str, label: str, operator: str, wanted: str) -> bool:
    """Whether the metric has that label, and for `=` and `=~` each alternative names one of its values."""
    if label in ADDED_BY_PROMETHEUS:
        return True
    values = exposed()[metric].get(label)
    if values is None:
        return False
    if wanted.startswith("$"):
        return True
    return all(word in values for word in wanted.split("|"))


def test_every_recording_rule_is_used_somewhere() -> None:
    named = {name for use in uses() for name in METRIC.findall(use.query)}
    assert {rule["record"] for rule in rules("record")} - named == set()


def test_counters_are_read_through_rates_only() -> None:
    bare = re.compile(r"(?<!rate\()(?<!increase\()\b(forecaster_\w+_total)\b")
    allowed = {"process: Programs compiled", "process: Time spent compiling"}  # totals since the start
    wrong = {use.where for use in uses() if bare.search(use.query)} - allowed
    assert not wrong


def test_the_manual_describes_every_metric_and_no_other() -> None:
    described = set(re.findall(r"\bforecaster_\w+", OPERATIONS.read_text()))
    ours = {name for name in exposed() if name.startswith("forecaster_")}
    families = {
        re.sub(r"_(bucket|count|sum)$", "", name) if name.endswith(("_bucket", "_sum")) else name
        for name in ours
    }
    families -= {name for name in ours if name.endswith("_count")}
    assert families - described == set()
    assert described - families - {"forecaster_state"} == set()


# --- rules and alerts ---


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing (Debian: prometheus)")
    return found


def run(*command: str | Path, stdin: bytes | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def test_prometheus_accepts_configuration_and_rules(promtool: str) -> None:
    run(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_prometheus_finds_nothing_to_blame_in_the_metrics(promtool: str) -> None:
    exposition = generate_latest(Metrics(horizon=2, levels=(0.1, 0.5, 0.9)).registry)
    assert run(promtool, "check", "metrics", stdin=exposition) == ""


def test_alerts_fire_and_stay_silent_in_their_unit_tests(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", DEPLOY / "prometheus" / "tests.yml")


def test_every_alert_has_a_case_that_fires_and_data_in_the_silent_one() -> None:
    scenarios = read_yaml(DEPLOY / "prometheus" / "tests.yml")["tests"]
    fired = {
        name
        for scenario in scenarios
        for check in scenario["promql_expr_test"]
        for sample in check["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == ALERTS.keys()
    healthy = {series["series"].partition("{")[0] for series in scenarios[0]["input_series"]}
    recorded = {rule["record"] for rule in rules("record")}
    needed = {name for rule in rules("alert") for name in METRIC.findall(rule["expr"])} - recorded
    assert needed - healthy == set()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_means_and_where_its_runbook_is(name: str) -> None:
    rule = ALERTS[name]
    assert name.startswith("Forecaster")
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes["summary"]
    assert notes["description"]
    file, _, anchor = notes["runbook_url"].partition("#")
    headings = {
        heading.lower() for heading in re.findall(r"^### (\w+)$", (ROOT / file).read_text(), re.MULTILINE)
    }
    assert anchor == name.lower()
    assert anchor in headings


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_tells_the_severity_of_its_alert(name: str) -> None:
    text = OPERATIONS.read_text().partition(f"### {name}\n")[2]
    assert text.startswith(f"*{ALERTS[name]['labels']['severity']}* · ")


def test_no_runbook_is_left_over() -> None:
    assert set(re.findall(r"^### (Forecaster\w+)$", OPERATIONS.read_text(), re.MULTILINE)) == ALERTS.keys()


# --- dashboards ---


def test_the_dashboards_are_what_their_source_makes(tmp_path: Path) -> None:
    run(sys.executable, DEPLOY / "grafana" / "build.py", tmp_path)
    assert {path.name: path.read_text() for path in DASHBOARDS} == {
        path.name: path.read_text() for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_has_unit_description_and_query(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert re.search(r"\n\nHealthy: \S", panel["description"])
        assert panel["targets"]
        for target in panel["targets"]:
            assert "$job" in target["expr"] or "ALERTS" in target["expr"]
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_fill_their_rows_without_overlap(path: Path) -> None:
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    compose = read_yaml(DEPLOY / "docker-compose.yml")["services"]
    source = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"][0]
    assert source["url"].removeprefix("http://").partition(":")[0] in compose
    provider = read_yaml(provisioning / "dashboards" / "forecaster.yml")["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    home = Path(compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.name in {path.name for path in DASHBOARDS}
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)


# --- containers ---


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile: keyword and rest of each instruction, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_runs_the_daemon_as_nobody_in_particular() -> None:
    last_stage = instructions()[[word for word, _ in instructions()].index("LABEL") :]
    found = dict(last_stage)
    assert found["USER"].split(":")[0].isdigit()
    assert found["USER"] != "0:0"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(found["ENTRYPOINT"]) == ["forecaster"]
    assert json.loads(found["CMD"])[:2] == ["run", "--config"]
    assert json.loads(found["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    assert f":{HttpSpec().port}/healthz" in found["HEALTHCHECK"]
    assert found["EXPOSE"] == str(HttpSpec().port)


def test_what_the_image_copies_is_there_and_is_sent_to_the_builder() -> None:
    sent = [
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    for source in (name.removeprefix("./") for names in copied for name in names):
        assert (ROOT / source).exists(), source
        assert source in sent


@pytest.mark.parametrize("name", ["container", "kubernetes"])
def test_the_configurations_that_are_shipped_can_be_read(name: str, tmp_path: Path) -> None:
    path = DEPLOY / "forecaster.toml"
    if name == "kubernetes":
        path = tmp_path / "forecaster.toml"
        path.write_text(read_yaml(DEPLOY / "kubernetes" / "configmap.yaml")["data"]["forecaster.toml"])
    config = load(path, {})
    assert config.http.host == "0.0.0.0"  # noqa: S104  (of a container)
    assert config.http.port == HttpSpec().port


def test_compose_names_only_what_is_there() -> None:
    compose = read_yaml(DEPLOY / "docker-compose.yml")
    services, volumes = compose["services"], compose["volumes"]
    assert services.keys() == {"kafka", "forecaster", "ticks", "prometheus", "grafana"}
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys()
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is published beyond this machine"
        assert ":" in service["image"] or service["image"] == "forecaster", f"{name}: no version"


def test_the_services_of_compose_find_each_other() -> None:
    services = read_yaml(DEPLOY / "docker-compose.yml")["services"]
    config = tomllib.loads((DEPLOY / "forecaster.toml").read_text())
    broker = config["kafka"]["bootstrap_servers"]
    assert f"INTERNAL://{broker}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    _, _, module, *arguments = services["ticks"]["entrypoint"]
    assert module == ticks.__name__
    assert parse(arguments).bootstrap == broker
    assert parse(arguments).live, "nobody is there who would tell it to play"
    scrape = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == [f"forecaster:{config['http']['port']}"]


def test_compose_starts_the_broker_that_the_tests_run_on() -> None:
    image = read_yaml(DEPLOY / "docker-compose.yml")["services"]["kafka"]["image"]
    found = re.search(r"<version>(4[\d.]+)</version>", (ROOT / "tests" / "broker" / "pom.xml").read_text())
    assert found
    assert image == f"apache/kafka:{found[1]}"


def test_a_container_of_compose_holds_no_more_rights_than_it_needs() -> None:
    services = read_yaml(DEPLOY / "docker-compose.yml")["services"]
    for name in ("forecaster", "ticks"):
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["read_only"] is True


# --- systemd ---


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "systemd" / "forecaster.service")
    return parser


def test_systemd_supervises_the_daemon_by_its_own_word() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].split()[1:3] == ["run", "--config"]
    assert service["WatchdogSec"]
    assert service["Restart"] == "on-failure"
    final = {ConfigError.exit_code, DataError.exit_code, FencedError.exit_code}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == final
    restarted = {BrokerError.exit_code, BusyError.exit_code, StuckError.exit_code, BugError.exit_code}
    assert not restarted & final
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0", "what others mend may take them hours"


def test_a_trainer_that_eats_memory_is_ended_before_the_daemon() -> None:
    service = unit()["Service"]
    assert service["OOMPolicy"] == "continue"
    compose = read_yaml(DEPLOY / "docker-compose.yml")["services"]["forecaster"]
    trainer = manifests()["StatefulSet forecaster-trainer"]["spec"]["template"]["spec"]["containers"][0]
    limits = (service["MemoryMax"], compose["mem_limit"], trainer["resources"]["limits"]["memory"])
    trained_gb = TrainingSpec.model_validate({}).memory_limit_mb / 1024
    for limit in limits:
        assert float(re.sub("(?i)gi?$", "", limit)) >= trained_gb + 2, limit


def test_systemd_itself_finds_no_fault(tmp_path: Path) -> None:
    """Where systemd is there: with the program replaced, since nothing is installed."""
    text = (DEPLOY / "systemd" / "forecaster.service").read_text()
    assert "/opt/forecaster/bin/forecaster" in text
    if shutil.which("systemd-analyze"):
        copy = tmp_path / "forecaster.service"
        copy.write_text(text.replace("/opt/forecaster/bin/forecaster", "/bin/true"))
        assert run("systemd-analyze", "verify", copy) == ""


# --- Kubernetes ---


def test_the_disruption_budget_holds_for_the_pods_that_answer() -> None:
    """One without a selector holds for none."""
    found = manifests()
    budget = found["PodDisruptionBudget forecaster"]["spec"]["selector"]["matchLabels"]
    pods = found["StatefulSet forecaster"]["spec"]["template"]["metadata"]["labels"]
    assert budget.items() <= pods.items()
    assert budget


def manifests() -> dict[str, Any]:
    """The manifests that kustomize applies, by kind and name."""
    folder = DEPLOY / "kubernetes"
    return {
        f"{m['kind']} {m['metadata']['name']}": m
        for name in read_yaml(folder / "kustomization.yaml")["resources"]
        for m in [read_yaml(folder / name)]
    }


ROLES = {"StatefulSet forecaster": "predict", "StatefulSet forecaster-trainer": "train"}


def test_every_manifest_is_applied() -> None:
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(read_yaml(DEPLOY / "kubernetes" / "kustomization.yaml")["resources"])
    if kubectl := shutil.which("kubectl"):
        applied = list(yaml.safe_load_all(run(kubectl, "kustomize", DEPLOY / "kubernetes")))
        assert len(applied) == len(files)


@pytest.mark.parametrize("name", ROLES)
def test_pods_are_probed_where_the_daemon_answers(name: str) -> None:
    pod = manifests()[name]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": HttpSpec().port}
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert container["args"][:2] == ["run", "--config"]


@pytest.mark.parametrize("name", ROLES)
def test_pods_run_restricted_and_find_what_they_mount(name: str) -> None:
    found = manifests()
    pod = found[name]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    mounted = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert Path(container["args"][2]).parent == mounted["config"]
    config = tomllib.loads(found["ConfigMap forecaster"]["data"]["forecaster.toml"])
    assert Path(config["http"]["token_file"]).parent == mounted["secret"]


@pytest.mark.parametrize("name", ROLES)
def test_environment_variables_name_the_role_and_keys_of_the_configuration(name: str) -> None:
    manifest = manifests()[name]
    template = manifest["spec"]["template"]
    variables = {v["name"]: v.get("value", "pod-0") for v in template["spec"]["containers"][0]["env"]}
    assert load(None, variables).kafka.instance_id == "pod-0"
    role = Role(variables["FORECASTER_ROLE"])
    assert role == ROLES[name]
    assert (
        manifest["spec"]["selector"]["matchLabels"]
        == template["metadata"]["labels"]
        == {"forecaster/role": role}
    )
