"""Manifests say what the program, its settings, its topics and its rights say, too."""

import re
from pathlib import Path
from typing import Any

import pytest

from processor.contract.rights import Role, rights
from processor.contract.topics import SPECS, SignalTopics, Topics
from processor.ops.acls import by_resource
from processor.ops.deployment.kubernetes import Manifests, as_text, manifests
from processor.ops.deployment.plan import (
    GRACE_S,
    VIEWS_MIB,
    Component,
    memory_mib,
    name_from,
    passed_on,
)
from processor.settings import SECRET_FILES, VARIABLES, Settings, load_settings
from processor.worker.supervisor import END_TIMEOUT_S
from processor.worker.worker import DRAIN_TIMEOUT_S
from tests.support.deployments import ACCESS, PASSWORD, deployment
from tests.support.program_tree import all_commands

ROOT = Path(__file__).parents[4]
DOCKERFILE = (ROOT / "processor/ops/deployment/Dockerfile").read_text("utf-8")
FILES = {"ca.crt", "user.crt", "user.key", "password", "token", "peer-secret"} | {
    *("read-token", "operator-token")
}
"""Keys of Secrets, and the token of a service account."""


def the(found: Manifests, kind: str, name: str) -> Any:
    """The spec of that resource."""
    (document,) = [
        document
        for documents in found.values()
        for document in documents
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return document["spec"]


def kinds(found: Manifests) -> set[str]:
    return {document["kind"] for documents in found.values() for document in documents}


def container(found: Manifests, role: Component) -> Any:
    (only,) = the(found, "StatefulSet", f"shop-{role}")["template"]["spec"]["containers"]
    return only


def environment(found: Manifests, role: Component) -> dict[str, str]:
    """As the pod with ordinal 0 has it."""
    variables: dict[str, str] = {}
    for entry in container(found, role)["env"]:
        value = entry.get("value") or f"shop-{role}-0"
        pattern = re.compile(r"\$\((\w+)\)")  # Kubernetes knows those that stand before
        variables[entry["name"]] = pattern.sub(lambda match: variables[match[1]], value)
    return variables


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_its_variables_are_settings_that_have_a_meaning(
    access: str, role: Component, tmp_path: Path
) -> None:
    def no(sentence: str) -> None:
        raise AssertionError(sentence)

    variables = environment(manifests(deployment(access)), role)
    for name in SECRET_FILES:
        if name in variables:
            secret = tmp_path / name
            secret.write_text("sixteen characters")
            variables[name] = str(secret)

    settings = load_settings(variables, warn=no)

    expected = deployment(access).settings
    same = (
        *("bootstrap_servers", "topic_prefix", "partitions", "steps_partitions", "group_id"),
        *("security_protocol", "sasl_mechanism"),
    )
    assert {name: getattr(settings, name) for name in same} == {
        name: getattr(expected, name) for name in same
    }
    port = container(manifests(deployment()), role)["ports"][0]["containerPort"]
    address = settings.views_http if role is Component.VIEWS else settings.http
    assert address == ("0.0.0.0", port)
    assert port == (Settings().views_http if role is Component.VIEWS else Settings().http)[1]  # type: ignore[index]


@pytest.mark.parametrize("access", ACCESS)
def test_no_secret_stands_in_a_manifest(access: str) -> None:
    text = "".join(map(as_text, manifests(deployment(access)).values()))
    assert not any(value in text for value in PASSWORD.values())
    assert not any(f"name: {secret}\n" in text for secret in SECRET_FILES.values())


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_each_file_that_a_setting_names_is_mounted(access: str, role: Component) -> None:
    found = manifests(deployment(access))
    paths = [
        Path(value) for value in environment(found, role).values() if value.startswith("/etc/")
    ]
    mounts = {Path(one["mountPath"]): one for one in container(found, role)["volumeMounts"]}
    assert {path.parent for path in paths} == {path for path in mounts if str(path)[:5] == "/etc/"}
    assert all(mounts[path.parent]["readOnly"] for path in paths)
    assert {path.name for path in paths} <= FILES


def test_a_certificate_is_proof_enough_and_comes_from_the_secret_of_the_user() -> None:
    found = manifests(deployment("certificate"))
    assert (
        environment(found, Component.WORKER)["TASKFLOW_SSL_KEYFILE"]
        == "/etc/taskflow/user/user.key"
    )
    volumes = the(found, "StatefulSet", "shop-worker")["template"]["spec"]["volumes"]
    assert [one["secret"]["secretName"] for one in volumes if "secret" in one] == [
        "my-cluster-cluster-ca-cert",
        "shop-worker",
    ]
    assert the(found, "KafkaUser", "shop-worker")["authentication"] == {"type": "tls"}


def test_each_worker_has_a_name_and_tables_that_survive_it() -> None:
    found = manifests(deployment())
    variables = environment(found, Component.WORKER)
    assert variables["TASKFLOW_INSTANCE_ID"] == "shop-worker-0"
    spec = the(found, "StatefulSet", "shop-worker")
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {
        one["name"]: one["mountPath"] for one in container(found, Component.WORKER)["volumeMounts"]
    }
    assert mounts[claim["metadata"]["name"]] == variables["TASKFLOW_STATE_DIR"]
    assert f"install --directory --owner taskflow {mounts['data']}" in DOCKERFILE


def test_view_workers_find_each_other_by_the_names_of_their_pods() -> None:
    found = manifests(deployment())
    variables = environment(found, Component.VIEWS)
    assert variables["TASKFLOW_VIEWS_ADVERTISE"] == "http://shop-views-0.shop-views:8901"
    assert the(found, "StatefulSet", "shop-views")["serviceName"] == "shop-views"
    assert the(found, "Service", "shop-views")["clusterIP"] == "None"


def test_hosts_of_the_user_are_answered_for_too() -> None:
    found = manifests(deployment(environ={"TASKFLOW_HTTP_HOSTS": "flows.example.org"}))
    hosts = environment(found, Component.VIEWS)["TASKFLOW_HTTP_HOSTS"].split(",")
    assert hosts == ["shop-views-http", "*.svc", "*.svc.cluster.local", "flows.example.org"]


@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_a_pod_is_asked_whether_it_lives_and_is_ready_and_given_time_to_stop(
    role: Component,
) -> None:
    found = manifests(deployment())
    pods = container(found, role)
    paths = {name: pods[name]["httpGet"]["path"] for name in pods if name.endswith("Probe")}
    assert paths == {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/ready"}
    spec = the(found, "StatefulSet", f"shop-{role}")["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == GRACE_S
    assert 2 * max(END_TIMEOUT_S, DRAIN_TIMEOUT_S) <= GRACE_S


@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_no_container_may_do_more_than_run(role: Component) -> None:
    found = manifests(deployment())
    spec = the(found, "StatefulSet", f"shop-{role}")["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"USER {spec['securityContext']['runAsUser']}\n" in DOCKERFILE
    assert container(found, role)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert spec["automountServiceAccountToken"] is False


def test_what_a_container_runs_is_a_command_of_the_program() -> None:
    found = manifests(deployment(processes=3))
    assert container(found, Component.WORKER)["args"] == ["worker", "--processes", "3"]
    assert container(found, Component.VIEWS)["args"] == ["views"]
    assert {("worker",), ("views",)} <= all_commands().keys()


def test_memory_is_that_of_the_figures_and_some_more() -> None:
    figures = (ROOT / "processor/docs/figures.md").read_text("utf-8")
    for processes, row in ((1, "one process"), (2, "`--processes 2`")):
        (measured,) = re.findall(rf"^\| {re.escape(row)} \|.* (\d+) MiB \(later", figures, re.M)
        assert memory_mib(Settings(), processes) >= 1.25 * int(measured)
    views = (ROOT / "processor/views/README.md").read_text("utf-8")
    assert 1.25 * max(map(int, re.findall(r"peak (\d+) MiB", views))) <= VIEWS_MIB


def test_a_larger_cache_takes_more_memory() -> None:
    larger = Settings(flow_cache_bytes=Settings().flow_cache_bytes + 256 * 1024 * 1024)
    assert memory_mib(larger, 1) == memory_mib(Settings(), 1) + 256


def test_topics_are_those_that_topics_create_makes() -> None:
    found = manifests(deployment())["topics.yaml"]
    assert [topic["spec"] for topic in found] == [
        {
            "topicName": f"shop.{spec.name}",
            "partitions": 24 if spec.name == "steps" else 12,
            "replicas": 3,
            "config": {**spec.config, "min.insync.replicas": "2"},
        }
        for spec in SPECS
    ]


def test_users_have_the_rights_of_their_role_and_no_others() -> None:
    found = manifests(deployment("scram"))
    assert [user["metadata"]["name"] for user in found["users.yaml"]] == [
        "shop-worker",
        "shop-views",
    ]
    for role in (Role.WORKER, Role.VIEWS):
        acls = the(found, "KafkaUser", f"shop-{role}")["authorization"]["acls"]
        needed = by_resource(rights(role, deployment().topics, "shop"))
        assert [(acl["resource"]["name"], acl["operations"]) for acl in acls] == [
            (resource.name, operations) for resource, operations in needed
        ]


def test_signals_are_there_if_they_are_wanted_with_their_topics_and_rights() -> None:
    assert "signals.yaml" not in manifests(deployment("scram"))
    found = manifests(deployment("scram", signals=2))

    for topic, spec in SignalTopics("shop"):
        made = the(found, "KafkaTopic", f"shop-{spec.name}")
        assert (made["topicName"], made["partitions"]) == (topic, 12)
    acls = the(found, "KafkaUser", "shop-signals")["authorization"]["acls"]
    assert len(acls) == len(by_resource(rights(Role.SIGNALS, Topics("shop"), "shop")))
    pods = the(found, "StatefulSet", "shop-signals")
    assert pods["replicas"] == 2
    assert "volumeClaimTemplates" not in pods
    assert container(found, Component.SIGNALS)["args"] == ["signals"]
    assert environment(found, Component.SIGNALS)["TASKFLOW_SIGNALS_HTTP"] == "0.0.0.0:8905"
    (ingress,) = the(found, "NetworkPolicy", "shop-signals")["ingress"]
    assert [one["port"] for one in ingress["ports"]] == [8905]


def test_relays_of_an_outbox_are_there_if_they_are_wanted() -> None:
    assert "outbox.yaml" not in manifests(deployment("scram"))
    found = manifests(deployment("scram", outbox=2))

    pods = the(found, "StatefulSet", "shop-outbox")
    assert pods["replicas"] == 2
    assert container(found, Component.OUTBOX)["args"] == ["outbox"]
    assert container(found, Component.OUTBOX)["readinessProbe"]["httpGet"]["path"] == "/live"
    variables = environment(found, Component.OUTBOX)
    assert variables["TASKFLOW_OUTBOX_HTTP"] == "0.0.0.0:8904"
    assert variables["TASKFLOW_OUTBOX_DSN_FILE"] == "/etc/taskflow/outbox/dsn"
    volumes = {one["name"]: one for one in pods["template"]["spec"]["volumes"]}
    assert volumes["outbox"]["secret"]["secretName"] == "shop-outbox-database"
    acls = the(found, "KafkaUser", "shop-outbox")["authorization"]["acls"]
    assert len(acls) == len(by_resource(rights(Role.PRODUCER, Topics("shop"), "shop")))
    egress = the(found, "NetworkPolicy", "shop-outbox")["egress"]
    assert 5432 in {port["port"] for rule in egress for port in rule["ports"]}


def test_views_with_an_operators_token_may_act_and_others_may_not() -> None:
    token = {"TASKFLOW_VIEWS_OPERATOR_TOKEN": "what operators know"}
    for environ, role in (({}, Role.VIEWS), (token, Role.VIEWS_ACTING)):
        found = manifests(deployment("scram", environ))
        acls = the(found, "KafkaUser", "shop-views")["authorization"]["acls"]
        needed = by_resource(rights(role, deployment().topics, "shop"))
        assert [acl["resource"]["name"] for acl in acls] == [one.name for one, _ in needed]
        variables = environment(found, Component.VIEWS)
        assert ("TASKFLOW_VIEWS_OPERATOR_TOKEN_FILE" in variables) == bool(environ)
        assert "TASKFLOW_VIEWS_OPERATOR_TOKEN_FILE" not in environment(found, Component.WORKER)


@pytest.mark.parametrize("access", ["nothing", "another password", "token"])
def test_users_that_strimzi_cannot_make_are_left_to_others(access: str) -> None:
    assert "users.yaml" not in manifests(deployment(access))


def test_workers_are_as_many_as_their_lag_needs_up_to_one_for_each_partition() -> None:
    found = manifests(deployment("scram", workers=3))
    scaled = the(found, "ScaledObject", "shop-worker")
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (3, 12)
    assert scaled["scaleTargetRef"]["name"] == "shop-worker"
    assert "replicas" not in the(found, "StatefulSet", "shop-worker")
    for trigger, topic in zip(scaled["triggers"], ("commands", "control"), strict=True):
        assert trigger["metadata"]["topic"] == f"shop.{topic}"
        assert trigger["metadata"]["consumerGroup"] == "shop"
    (username,) = the(found, "TriggerAuthentication", "shop-worker")["env"]
    assert username["name"] in environment(found, Component.WORKER)
    assert username["containerName"] == container(found, Component.WORKER)["name"]


def test_a_worker_of_several_processes_takes_as_many_partitions() -> None:
    found = manifests(deployment(processes=5))
    assert the(found, "ScaledObject", "shop-worker")["maxReplicaCount"] == 3


def test_without_an_operator_nothing_of_its_kind_is_written() -> None:
    found = manifests(deployment("scram", operators=frozenset(), workers=3, views=0))
    assert list(found) == ["workers.yaml"]
    assert kinds(found) == {"Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"}
    assert the(found, "StatefulSet", "shop-worker")["replicas"] == 3


def test_a_pod_reaches_brokers_and_views_each_other() -> None:
    found = manifests(deployment())

    def ports(role: Component) -> set[int]:
        rules = the(found, "NetworkPolicy", f"shop-{role}")["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert ports(Component.WORKER) == {53, 9092, 9093}
    assert ports(Component.VIEWS) == {53, 9092, 9093, 8901}


@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_everything_selects_the_same_pods(role: Component) -> None:
    found = manifests(deployment())
    labels = the(found, "StatefulSet", f"shop-{role}")["template"]["metadata"]["labels"]
    selectors = [
        the(found, "StatefulSet", f"shop-{role}")["selector"]["matchLabels"],
        the(found, "Service", f"shop-{role}")["selector"],
        the(found, "PodDisruptionBudget", f"shop-{role}")["selector"]["matchLabels"],
        the(found, "NetworkPolicy", f"shop-{role}")["podSelector"]["matchLabels"],
        # A ServiceMonitor selects the Service, which has the same labels.
        the(found, "ServiceMonitor", f"shop-{role}")["selector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    services = [one for one in found["views.yaml"] if one["kind"] == "Service"]
    assert [one["metadata"]["name"] for one in services if one["metadata"]["labels"] == labels] == (
        ["shop-views"] if role is Component.VIEWS else []
    )


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("taskflow", "taskflow"),
        ("Shop.orders_2", "shop-orders-2"),
        ("2nd", None),
        ("_x", None),
        ("a" * 41, None),
    ],
)
def test_a_topic_prefix_is_a_name_if_it_can_be_one(prefix: str, name: str | None) -> None:
    assert name_from(prefix) == name


def test_every_variable_is_passed_on_or_the_deployments_own() -> None:
    """A new setting reaches the pods unless it is listed as an exception."""
    values = dict.fromkeys(VARIABLES, "x")
    left_out = set(VARIABLES) - passed_on(values).keys()
    assert left_out == set(SECRET_FILES.values()) | {
        *("TASKFLOW_REPLICATION_FACTOR", "TASKFLOW_CACHE_DIR", "TASKFLOW_FAULTS"),
        *("TASKFLOW_BROKER_HEAP", "TASKFLOW_BROKER_JIT", "TASKFLOW_BROKER_AOT"),
        *("TASKFLOW_INSTANCE_ID", "TASKFLOW_STATE_DIR", "TASKFLOW_HTTP", "TASKFLOW_HTTP_HOSTS"),
        *("TASKFLOW_VIEWS_HTTP", "TASKFLOW_VIEWS_ADVERTISE", "TASKFLOW_SASL_USERNAME"),
        *("TASKFLOW_SASL_OAUTH_TOKEN_FILE", "TASKFLOW_SSL_CAFILE", "TASKFLOW_SIGNALS_HTTP"),
        *("TASKFLOW_SSL_CERTFILE", "TASKFLOW_SSL_KEYFILE", "TASKFLOW_OUTBOX_HTTP"),
    }
