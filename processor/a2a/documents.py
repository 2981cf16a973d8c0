"""Convert A2A tasks to the state of flows and back. Pure.

The state of a task's flow is an object with these keys:

- `version`: the number of saves of the task, from 1; the SDK's TaskVersion.
- `context_id`.
- `id`: only if the task's id is not a UUID, and the flow has another id.
- `status`: state, timestamp, and the message as a value (see `values`).
- `metadata`; `message 0`, `message 1` … (the history); `artifact 0.0`, `artifact 0.1` … (the chunks
  of each artifact): values. Each has a key of its own, since a merge is shallow and a save writes
  only what is new. Null means removed.
- `event`: the event of the newest save, for subscribers of the task.

A flow that ended in another way (cancelled, failed by an operator) counts one save more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid5

import orjson
from a2a.server.cluster import TaskVersion, VersionedEvent
from a2a.server.events import Event
from a2a.types import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from processor.a2a.values import INLINE_MAX_BYTES, Piece, decode_value, encode_value
from processor.client import CurrentFlow, flow_id_for
from processor.contract import FlowStatus

STATE_MAX_BYTES: Final = 192 * 1024
"""Size of a flow's state from which on all new values go into steps."""
REFERENCE_BYTES: Final = 300

TERMINAL: Final = frozenset(
    {
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_REJECTED,
    }
)
INTERRUPTED: Final = frozenset(
    {TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED}
)
_ENDS: Final = {
    FlowStatus.FINISHED: TaskState.TASK_STATE_COMPLETED,
    FlowStatus.FAILED: TaskState.TASK_STATE_FAILED,
    FlowStatus.CANCELLED: TaskState.TASK_STATE_CANCELED,
}


@dataclass(frozen=True)
class SavedEvent(VersionedEvent):
    """An event of a task, and the number of the save that it belongs to."""

    nth: int


def flow_id_of(task_id: str) -> str:
    """Return the id of the task's flow: the task's id if it is a UUID in the contract's form."""
    try:
        if str(UUID(task_id)) == task_id:
            return task_id
    except ValueError:
        pass
    return flow_id_for(f"a2a/{task_id}")


def state_of(current: CurrentFlow) -> TaskState:
    """Return the task's state; UNSPECIFIED before its first save is complete."""
    recorded = _recorded_state(current)
    return recorded if recorded in TERMINAL else _ENDS.get(current.flow.status, recorded)


def version_of(current: CurrentFlow) -> int:
    """Return the number of saves of the task; 0 before its first save is complete."""
    version: int = current.flow.state_json.get("version", 0)
    ended_otherwise = current.flow.status in _ENDS and _recorded_state(current) not in TERMINAL
    return version + 1 if version and ended_otherwise else version


def task_of(current: CurrentFlow) -> Task | None:
    """Return the task; None before its first save is complete."""
    document = current.flow.state_json
    if not version_of(current):
        return None
    task = Task(
        id=document.get("id", current.flow.id),
        context_id=document["context_id"],
        status=_status_of(current),
        history=[
            ParseDict(decode_value(form, current.steps), Message())
            for form in _forms(document, "message {}")
        ],
        artifacts=list(_artifacts(current)),
    )
    if document.get("metadata"):
        ParseDict(decode_value(document["metadata"], current.steps), task.metadata)
    return task


@dataclass(slots=True)
class Save:
    """The writes of one save: first `pieces` as steps, then `patch` into the flow's state."""

    patch: dict[str, Any] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)


def plan_save(task: Task, event: Event | None, before: CurrentFlow | None) -> Save:
    """Return the writes that change the task of `before` (None: there is no flow) to `task`."""
    document = before.flow.state_json if before is not None else {}
    writer = _Writer(document)
    writer.plain("version", (version_of(before) if before is not None else 0) + 1)
    writer.plain("context_id", task.context_id)
    if flow_id_of(task.id) != task.id:
        writer.plain("id", task.id)
    status = MessageToDict(task.status)
    if "message" in status:
        status["message"] = writer.form(
            "message", status["message"], known=(document.get("status") or {}).get("message")
        )
    writer.plain("status", status)
    if task.HasField("metadata"):
        writer.value("metadata", "metadata", MessageToDict(task.metadata))
    else:
        writer.clear("metadata")
    for nth, message in enumerate(task.history):
        writer.value(f"message {nth}", "message", MessageToDict(message))
    for nth in range(len(task.history), _count(document, "message {}")):
        writer.clear(f"message {nth}")
    _plan_artifacts(writer, task, event, before)
    writer.patch["event"] = _event_document(writer, event)
    return Save(writer.patch, writer.pieces)


def event_after(
    before: CurrentFlow | None, after: CurrentFlow, event: Mapping[str, Any]
) -> SavedEvent | None:
    """Return the task's event for a FlowEvent that changed `before` to `after`; None if
    subscribers learn nothing of it."""
    version = version_of(after)
    if not version or (before is not None and version == version_of(before)):
        return None
    task_id = after.flow.state_json.get("id", after.flow.id)
    context_id = after.flow.state_json["context_id"]
    document = after.flow.state_json["event"]
    if event["kind"] not in ("created", "state_updated"):
        document = {"kind": "status"}
    if document["kind"] == "none":
        return None
    found: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent
    if document["kind"] == "status":
        found = TaskStatusUpdateEvent(
            task_id=task_id, context_id=context_id, status=_status_of(after)
        )
    elif document["kind"] == "artifact":
        found = TaskArtifactUpdateEvent(
            task_id=task_id,
            context_id=context_id,
            artifact=ParseDict(decode_value(document["artifact"], after.steps), Artifact()),
            append=document["append"],
            last_chunk=document["last_chunk"],
        )
    else:
        task = task_of(after)
        assert task is not None
        return SavedEvent(task, TaskVersion(version), version)
    if "metadata" in document:
        ParseDict(decode_value(document["metadata"], after.steps), found.metadata)
    return SavedEvent(found, TaskVersion(version), version)


# Reading


def _recorded_state(current: CurrentFlow) -> TaskState:
    status = current.flow.state_json.get("status") or {}
    state: TaskState = TaskState.Value(status.get("state", "TASK_STATE_UNSPECIFIED"))
    return state


def _status_of(current: CurrentFlow) -> TaskStatus:
    document = dict(current.flow.state_json["status"])
    message = document.pop("message", None)
    status: TaskStatus = ParseDict(document, TaskStatus())
    if message is not None:
        ParseDict(decode_value(message, current.steps), status.message)
        status.message.SetInParent()
    state = state_of(current)
    if state != status.state:
        status.state = state
        status.timestamp.FromJsonString(current.flow.updated_at)
        failure = current.flow.state_json.get("failure")
        if failure is not None:
            status.message.CopyFrom(_text(current, failure["reason"]))
    return status


def _text(current: CurrentFlow, text: str) -> Message:
    return Message(
        message_id=str(uuid5(UUID(current.flow.id), f"end {current.flow.revision}")),
        task_id=current.flow.state_json.get("id", current.flow.id),
        context_id=current.flow.state_json["context_id"],
        role=Role.ROLE_AGENT,
        parts=[Part(text=text)],
    )


def _forms(document: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    """The values under `key` with 0, 1, 2 … in it, to the first that is not there."""
    nth = 0
    while (form := document.get(key.format(nth))) is not None:
        yield form
        nth += 1


def _count(document: Mapping[str, Any], key: str) -> int:
    return sum(1 for _ in _forms(document, key))


def _artifacts(current: CurrentFlow) -> Iterator[Artifact]:
    """The artifacts, assembled from their chunks as the SDK does: parts added, metadata merged."""
    nth = 0
    while True:
        whole: Artifact | None = None
        for form in _forms(current.flow.state_json, f"artifact {nth}.{{}}"):
            sent = ParseDict(decode_value(form, current.steps), Artifact())
            if whole is None:
                whole = sent
            else:
                whole.parts.extend(sent.parts)
                whole.metadata.update(dict(sent.metadata.items()))
        if whole is None:
            return
        yield whole
        nth += 1


# Writing


class _Writer:
    """Collects the patch of a save, and the steps that it refers to."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.patch: dict[str, Any] = {}
        self.pieces: list[Piece] = []
        self._document = document
        self._room = STATE_MAX_BYTES - len(orjson.dumps(document))

    def plain(self, key: str, value: Any) -> None:
        if self._document.get(key) != value:
            self.patch[key] = value

    def clear(self, key: str) -> None:
        if self._document.get(key) is not None:
            self.patch[key] = None

    def value(self, key: str, task: str, value: dict[str, Any], *, name: str = "") -> None:
        form = self.form(task, value, name=name, known=self._document.get(key))
        self.plain(key, form)

    def form(
        self,
        task: str,
        value: dict[str, Any],
        *,
        name: str = "",
        inline: bool = True,
        known: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The form of `value`; `known` if it has the same value, so that nothing is rewritten."""
        if known is not None and known.get("is") == value:
            return dict(known)
        inline_max = min(INLINE_MAX_BYTES, self._room) if inline else 0
        form, pieces = encode_value(value, task=task, name=name or task, inline_max=inline_max)
        if known is not None and "step" in known:
            away, pieces_away = encode_value(value, task=task, name=name or task, inline_max=0)
            if away == known:
                form, pieces = away, pieces_away
        self._room -= len(orjson.dumps(form)) + REFERENCE_BYTES
        self.pieces += pieces
        return form

    def artifact(self, key: str, artifact: Artifact) -> dict[str, Any]:
        """The form of an artifact: always a step."""
        name = f"artifact {artifact.artifact_id}"
        task = artifact.name or artifact.artifact_id or "artifact"
        form = self.form(task, MessageToDict(artifact), name=name, inline=False)
        self.plain(key, form)
        return form


def _plan_artifacts(
    writer: _Writer, task: Task, event: Event | None, before: CurrentFlow | None
) -> None:
    document = before.flow.state_json if before is not None else {}
    if isinstance(event, TaskArtifactUpdateEvent) and event.append:
        nth = _index(task, event.artifact.artifact_id)
        chunk = _count(document, f"artifact {nth}.{{}}")
        if chunk:  # the SDK refuses to append to a missing artifact
            writer.artifact(f"artifact {nth}.{chunk}", event.artifact)
            return
    known = list(_artifacts(before)) if before is not None and document else []
    for nth, artifact in enumerate(task.artifacts):
        if nth >= len(known) or known[nth] != artifact:
            writer.artifact(f"artifact {nth}.0", artifact)
            for chunk in range(1, _count(document, f"artifact {nth}.{{}}")):
                writer.clear(f"artifact {nth}.{chunk}")
    for nth in range(len(task.artifacts), len(known)):
        for chunk in range(_count(document, f"artifact {nth}.{{}}")):
            writer.clear(f"artifact {nth}.{chunk}")


def _index(task: Task, artifact_id: str) -> int:
    found = (n for n, artifact in enumerate(task.artifacts) if artifact.artifact_id == artifact_id)
    return next(found, len(task.artifacts))


def _event_document(writer: _Writer, event: Event | None) -> dict[str, Any]:
    document: dict[str, Any]
    if isinstance(event, TaskStatusUpdateEvent):
        document = {"kind": "status"}
    elif isinstance(event, TaskArtifactUpdateEvent):
        document = {
            "kind": "artifact",
            "artifact": writer.form(
                event.artifact.name or event.artifact.artifact_id or "artifact",
                MessageToDict(event.artifact),
                name=f"artifact {event.artifact.artifact_id}",
                inline=False,
            ),
            "append": event.append,
            "last_chunk": event.last_chunk,
        }
    else:
        return {"kind": "none" if event is None else "task"}
    if event.HasField("metadata"):
        metadata: Struct = event.metadata
        document["metadata"] = writer.form("metadata", MessageToDict(metadata))
    return document
