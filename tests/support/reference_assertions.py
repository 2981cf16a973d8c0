"""Holds what was written against what the contract says (tests/support/reference_model.py)."""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from processor.testing.memory.deployment import Deployment
from tests.support.reference_model import Contract, Expected
from tests.support.reference_values import Doc, compact, digest, sorted_compact

Headers = Sequence[tuple[str, bytes | None]]
OUTCOME_FIELDS = [
    "command_id", "flow_id", "kind", "verdict", "code", "message", "revision", "status",
    "event_ids", "allowed", "details", "dry_run", "command_digest", "source", "at",
]  # fmt: skip
EVENT_FIELDS = [
    "id", "flow_id", "kind", "payload_json", "at", "revision", "status", "command_id", "actor",
    "source", "schema_version",
]  # fmt: skip


class Wrote(Protocol):
    """A record that the processor wrote."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Reader:
    """Reads what one partition writes, in the order in which it decides."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._chains: dict[str, bytes] = {}
        self._details: dict[str, Doc] = {}

    def read(
        self,
        records: Sequence[Any],
        *,
        outcomes: Sequence[Wrote],
        audit: Sequence[Wrote],
        dead_letters: Sequence[Wrote],
    ) -> list[Expected]:
        """What the contract answers to `records`, which is what was written."""
        all_expected = [self.contract.take(record) for record in records]
        assert len(outcomes) == len(records)
        for record, expected, outcome in zip(records, all_expected, outcomes, strict=True):
            self._read_outcome(record, expected, outcome)
        events = [
            (record, event)
            for record, expected in zip(records, all_expected, strict=True)
            for event in expected.events
        ]
        assert len(audit) == len(events)
        for (record, promised), event in zip(events, audit, strict=True):
            self._read_event(record, promised, event)
        spoiled = [
            (record, expected.outcome)
            for record, expected in zip(records, all_expected, strict=True)
            if expected.outcome["verdict"] == "quarantined"
        ]
        assert len(dead_letters) == len(spoiled)
        for (record, sentence), dead_letter in zip(spoiled, dead_letters, strict=True):
            read_dead_letter(record, sentence, dead_letter)
        return all_expected

    def present(self) -> dict[str, Doc]:
        """What `state` must say of flows and steps."""
        present: dict[str, Doc] = {}
        for flow_id, known in self.contract.flows.items():
            present[flow_id] = {
                "flow": known.flow,
                "last_event_id": known.last_event_id,
                "chain": self._chains[flow_id].hex(),
            }
            for run_id, step in known.steps.items():
                present[f"{flow_id}/{run_id}"] = {"step": step}
        return present

    def _read_outcome(self, record: Any, expected: Expected, outcome: Wrote) -> None:
        stated, promised = compact_json(outcome.value), expected.outcome
        assert list(stated) == OUTCOME_FIELDS + ["original"] * ("original" in promised)
        assert len(stated.pop("message")) > 10
        details = self._details[place_of(stated)] = stated["details"]
        if expected.original is not None:
            assert details == self._details[place_of(expected.original)]
        elif expected.wrong_fields is not None:
            check_errors(details, expected.wrong_fields)
        elif promised["details"] is not None:
            assert details == promised["details"]
        free = {"details": None}
        assert sorted_compact(stated | free) == sorted_compact(promised | free)
        flow_id = promised["flow_id"]
        assert outcome.key == (record.key if flow_id is None else flow_id.encode())
        assert list(outcome.headers) == traces(record)

    def _read_event(self, record: Any, expected: Doc, event: Wrote) -> None:
        stated = compact_json(event.value)
        assert list(stated) == EVENT_FIELDS
        assert sorted_compact(stated) == sorted_compact(expected)
        flow_id = expected["flow_id"]
        assert event.key == flow_id.encode()
        chain = digest(self._chains.get(flow_id, bytes(16)), event.value or b"")
        assert list(event.headers) == [("taskflow-chain", chain), *traces(record)]
        self._chains[flow_id] = chain
        if expected["kind"] == "pruned":
            del self._chains[flow_id]


def read_partition(world: Deployment, partition: int, contract: Contract) -> list[Expected]:
    """Hold all that a partition has written against what the contract says; what it answers."""
    reader = Reader(contract)
    all_expected = reader.read(
        decided(world, partition),
        outcomes=world.of("outcomes", partition),
        audit=world.of("audit", partition),
        dead_letters=world.of("deadletters", partition),
    )
    assert sorted_compact(present(world, partition)) == sorted_compact(reader.present())
    return all_expected


def decided(world: Deployment, partition: int) -> list[Any]:
    """The records of a partition, in the order in which they were decided."""
    found = {
        (record.topic, record.offset): record
        for topic in ("commands", "control")
        for record in world.of(topic, partition)
    }
    sources = [json.loads(r.value or b"")["source"] for r in world.of("outcomes", partition)]
    return [found[source["topic"], source["offset"]] for source in sources]


def present(world: Deployment, partition: int) -> dict[str, Any]:
    """What `state` says last of flows and steps."""
    state = {(r.key or b"").decode(): r.value for r in world.of("state", partition)}
    return {
        key: json.loads(value)
        for key, value in state.items()
        if value is not None and not key.startswith("cursor/")
    }


def read_dead_letter(record: Any, outcome: Doc, dead_letter: Wrote) -> None:
    value, count = record.value, len(record.headers)
    assert dead_letter.key == record.key
    assert dead_letter.value == (value and value[: 512 * 1024])
    assert tuple(dead_letter.headers[:count]) == tuple(record.headers)
    added = {name: (text or b"").decode() for name, text in dead_letter.headers[count:]}
    assert len(added.pop("taskflow-message")) > 10
    expected = {
        "taskflow-code": outcome["code"],
        "taskflow-source-topic": outcome["source"]["topic"],
        "taskflow-source-partition": str(record.partition),
        "taskflow-source-offset": str(record.offset),
        "taskflow-source-timestamp": outcome["at"],
    }
    if len(value or b"") > 512 * 1024:
        expected["taskflow-truncated"] = str(len(value))
        expected["taskflow-digest"] = digest(value).hex()
    assert added == expected


def compact_json(value: bytes | None) -> Doc:
    """What `value` holds, which must be compact and escape nothing without need."""
    stated: Doc = json.loads(value or b"")
    # There are two ways to write this number; within a text it is no number.
    assert value == re.sub(rb"(?<=[:,\[])1e-07", b"1e-7", compact(stated))
    return stated


def check_errors(details: Doc, wrong: set[str]) -> None:
    assert list(details) == ["errors"]
    errors = details["errors"]
    assert all(list(error) == ["field", "problem"] for error in errors)
    assert 1 <= len(errors) <= 20
    assert {error["field"] for error in errors} == wrong


def place_of(outcome: Doc) -> str:
    return json.dumps(outcome["source"])


def traces(record: Any) -> list[tuple[str, bytes | None]]:
    return [header for header in record.headers if header[0] == "traceparent"]
