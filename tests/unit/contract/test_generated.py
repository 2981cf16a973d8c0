"""The generated schemas: in step with the models, and true of real messages."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.contract import (
    COMMANDS,
    EVENTS,
    SPECS,
    STEPS,
    Cursor,
    DeadLetterHeaders,
    Flow,
    FlowSnapshot,
    Outcome,
    StepSnapshot,
    Topics,
    WorkItem,
    parse_timestamp,
)
from processor.contract.commands import MODELS
from processor.contract.publication import examples, generate
from processor.contract.signals import SignalMessage
from processor.contract.topics import SIGNALS, SignalTopics
from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.partitioner import partition_of
from processor.engine.rows import Position
from tests.support.partition import Partition, Sent

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT / "schemas"
CASES = [
    json.loads(line)
    for line in (ROOT / "schemas/vectors/conformance.jsonl").read_text("utf-8").splitlines()
]
COMMANDS_SENT = [sent["value"] for case in CASES for sent in case["commands"]]
EVENTS_EXPECTED = [e for case in CASES for expect in case["expect"] for e in expect["events"]]
SOURCE = {"topic": "taskflow.commands", "partition": 0, "offset": 0}

EXAMPLES = {
    "command": [examples.COMMAND, *examples.MORE_COMMANDS],
    "outcome": [examples.OUTCOME],
    "flow-event": [examples.EVENT],
    "flow": [examples.FLOW],
    "flow-step": [examples.STEP, examples.MANAGED_STEP],
    "flow-snapshot": [examples.FLOW_SNAPSHOT],
    "step-snapshot": [examples.STEP_SNAPSHOT, examples.MANAGED_STEP_SNAPSHOT],
    "work-item": [examples.WORK_ITEM],
    "cursor": [examples.CURSOR],
    "dead-letter-headers": [examples.DEAD_LETTER_HEADERS],
    "signal": [examples.SIGNAL],
}
READERS: dict[str, Callable[[str], object]] = {
    "command": COMMANDS.validate_json,
    "outcome": Outcome.model_validate_json,
    "flow-event": EVENTS.validate_json,
    "flow": Flow.model_validate_json,
    "flow-step": STEPS.validate_json,
    "flow-snapshot": FlowSnapshot.model_validate_json,
    "step-snapshot": StepSnapshot.model_validate_json,
    "work-item": WorkItem.model_validate_json,
    "cursor": Cursor.model_validate_json,
    "dead-letter-headers": DeadLetterHeaders.model_validate_json,
    "signal": SignalMessage.model_validate_json,
}


def schema_of(name: Any) -> Any:
    return json.loads((SCHEMAS / f"json/{name}.schema.json").read_text("utf-8"))


def checker(schema: Any) -> Any:
    """Imported late: jsonschema makes grammars of URIs for two seconds, in each process."""
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema)


def validator(name: Any) -> Any:
    return checker(schema_of(name))


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """The generated files somewhere else, to be spoiled."""
    home = tmp_path / "schemas"
    shutil.copytree(SCHEMAS / "json", home / "json")
    shutil.copy(SCHEMAS / "asyncapi.yaml", home)
    return home


def check(home: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    code = generate.main(["--check"], home)
    return code, capsys.readouterr().out.splitlines()


# -- the generator --


def test_what_is_checked_in_is_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(SCHEMAS, capsys) == (0, [])


def test_a_file_that_was_edited_by_hand_is_stale_and_written_anew(
    copy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = copy / "json/flow.schema.json"
    flow.write_text(flow.read_text("utf-8").replace("Flow", "Task"), "utf-8")
    assert check(copy, capsys) == (1, ["stale: schemas/json/flow.schema.json"])
    assert generate.main([], copy) == 0
    assert capsys.readouterr().out == "wrote: schemas/json/flow.schema.json\n"
    assert check(copy, capsys) == (0, [])


def test_a_file_that_is_missing_is_stale(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "asyncapi.yaml").unlink()
    assert check(copy, capsys) == (1, ["stale: schemas/asyncapi.yaml"])


def test_a_file_that_nothing_generates_is_stale_and_removed(
    copy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "json/task.schema.json").write_text("{}", "utf-8")
    assert check(copy, capsys) == (1, ["stale: schemas/json/task.schema.json"])
    assert generate.main([], copy) == 0
    assert not (copy / "json/task.schema.json").exists()


def test_a_check_writes_nothing(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "json/flow.schema.json").write_text("{}", "utf-8")
    generate.main(["--check"], copy)
    assert (copy / "json/flow.schema.json").read_text("utf-8") == "{}"


def test_without_pyyaml_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, copy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert generate.main(["--check"], copy) == 1
    assert "pip install 'taskflow-kafka[dev]'" in capsys.readouterr().err


# -- the JSON Schemas --


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_schema_is_one_of_2020_12_and_says_what_it_describes(name: Any) -> None:
    schema = schema_of(name)
    checker(schema).check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:taskflow:schema:1:{name}"
    assert schema["title"]
    assert schema["description"].endswith(".")


def test_there_is_a_schema_for_each_message_and_no_other() -> None:
    names = {path.name.removesuffix(".schema.json") for path in (SCHEMAS / "json").iterdir()}
    assert names == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_fit_their_schema_and_their_model(name: Any) -> None:
    for example in EXAMPLES[name]:
        validator(name).validate(example)
        READERS[name](json.dumps(example))


def test_every_command_of_the_conformance_cases_fits_its_schema() -> None:
    for command in COMMANDS_SENT:
        validator("command").validate(command)


def test_every_event_of_the_conformance_cases_fits_its_schema() -> None:
    for number, event in enumerate(EVENTS_EXPECTED, start=1):
        validator("flow-event").validate({**event, "id": number, "source": SOURCE})


def test_every_flow_and_step_of_the_conformance_cases_fits_its_schema() -> None:
    for case in CASES:
        if case["flow"] is not None:
            validator("flow").validate(case["flow"])
        for step in case["steps"]:
            validator("flow-step").validate(step)


@pytest.mark.parametrize("kind", MODELS)
def test_null_fits_every_optional_field_of_a_command(kind: str) -> None:
    command = next(c for c in COMMANDS_SENT if c["kind"] == kind)
    optional = [n for n, field in MODELS[kind].model_fields.items() if not field.is_required()]
    nulls = dict.fromkeys(name for name in optional if name != "kind")
    validator("command").validate({**command, **nulls})
    COMMANDS.validate_python({**command, **nulls})


@pytest.mark.parametrize(
    "fault",
    [
        {"colour": "red"},
        {"kind": "task"},
        {"flow_id": "X"},
        {"issued_by": ""},
        {"dry_run": 1},
        {"expected_revision": -1},
        {"schema_version": 2},
    ],
    ids=str,
)
def test_what_the_processor_would_not_read_does_not_fit(fault: Any) -> None:
    assert not validator("command").is_valid({**examples.COMMAND, **fault})


def test_a_command_without_its_kind_does_not_fit() -> None:
    kindless = {name: value for name, value in examples.COMMAND.items() if name != "kind"}
    assert not validator("command").is_valid(kindless)


def test_the_examples_are_what_the_processor_writes() -> None:
    number = partition_of(examples.FLOW_ID.encode(), 4)
    partition = Partition(
        PartitionConfig(number, 4, Topics(), dedupe_window_ms=0),
        Position(examples.OUTCOME["source"]["offset"], 0, first_event_id(number)),
    )
    at_ms = parse_timestamp(examples.OUTCOME["at"])
    ((outcome, events, _),) = partition.send(Sent("commands", at_ms, examples.COMMAND))
    assert outcome == examples.OUTCOME
    assert events == [examples.EVENT]
    assert partition.flow(examples.FLOW_ID) == examples.FLOW
    assert partition.flows[examples.FLOW_ID].chain.hex() == examples.FLOW_SNAPSHOT["chain"]


def test_the_readme_shows_the_same_examples() -> None:
    blocks = re.findall(r"```json\n(.*?)```", (SCHEMAS / "README.md").read_text("utf-8"), re.S)
    shown = [json.loads(block) for block in blocks]
    assert shown == [examples.COMMAND, examples.OUTCOME, examples.EVENT]


# -- the AsyncAPI document --

DOCUMENT = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))


def references(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: Any, document: Any) -> Any:
    file, _, pointer = reference.partition("#")
    node = json.loads((SCHEMAS / file).read_text("utf-8")) if file else document
    for part in pointer.split("/")[1:]:
        node = node[part]
    return node


def test_every_reference_leads_somewhere() -> None:
    found = list(references(DOCUMENT))
    assert found
    for reference in found:
        assert resolve(reference, DOCUMENT)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_reference_within_a_schema_leads_somewhere(name: Any) -> None:
    schema = schema_of(name)
    for reference in references(schema):
        assert resolve(reference, schema)


def test_it_has_the_parts_that_asyncapi_3_requires() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert all(m["$ref"].startswith(f"{channel}/messages/") for m in operation["messages"])


def test_its_channels_are_the_seven_topics_and_signals_with_their_settings() -> None:
    assert list(DOCUMENT["channels"]) == [*(spec.name for spec in SPECS), "signals"]
    for topic, spec in (*Topics(), (SignalTopics().signals, SIGNALS)):
        channel = DOCUMENT["channels"][spec.name]
        kafka = channel["bindings"]["kafka"]
        assert channel["address"] == kafka["topic"] == topic
        assert kafka["partitions"] == 4
        written = {
            key: ",".join(value) if isinstance(value, list) else str(value)
            for key, value in kafka["topicConfiguration"].items()
        }
        assert written == dict(spec.config)


def test_what_is_sent_and_what_is_received() -> None:
    actions = {
        operation["channel"]["$ref"].removeprefix("#/channels/"): operation["action"]
        for operation in DOCUMENT["operations"].values()
    }
    assert actions == {
        "commands": "send",
        "control": "send",
        "outcomes": "receive",
        "audit": "receive",
        "state": "receive",
        "deadletters": "receive",
        "steps": "receive",
        "signals": "send",
    }


def test_its_examples_fit_the_schemas_that_they_stand_beside() -> None:
    for message in DOCUMENT["components"]["messages"].values():
        for example in message["examples"]:
            for part in ("payload", "headers"):
                reference = message.get(part, {}).get("$ref")
                if reference is not None:
                    checker(resolve(reference, DOCUMENT)).validate(example[part])
