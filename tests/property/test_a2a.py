"""A task read back from its flow is the task that was saved, and its events are those given."""

import string
from typing import Any

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
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from processor.a2a.documents import event_after, plan_save, task_of, version_of
from processor.client import CurrentFlow, fold

TASK = "6f1f3a52-0000-4000-8000-000000000001"
texts = st.text(st.characters(codec="utf-8"), max_size=12)
long_texts = st.one_of(texts, st.integers(1, 30_000).map(lambda n: "ü\\" * n))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**60), 2**60).map(float)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.none() | st.dictionaries(texts, json_values, max_size=3)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    part = Part(filename=draw(texts), media_type=draw(texts))
    match draw(st.sampled_from(["text", "raw", "url", "data", "none"])):
        case "text":
            part.text = draw(long_texts)
        case "raw":
            part.raw = draw(st.binary(max_size=200))
        case "url":
            part.url = draw(texts)
        case "data":
            part.data.CopyFrom(ParseDict(draw(json_values), Value()))
    if (metadata := draw(objects)) is not None:
        part.metadata.update(metadata)
    return part


@st.composite
def messages(draw: st.DrawFn) -> Message:
    message = Message(
        message_id=draw(texts),
        role=draw(st.sampled_from(Role.values())),
        parts=draw(st.lists(parts(), max_size=2)),
        extensions=draw(st.lists(texts, max_size=2)),
    )
    if (metadata := draw(objects)) is not None:
        message.metadata.update(metadata)
    return message


@st.composite
def artifacts(draw: st.DrawFn, artifact_id: str | None = None) -> Artifact:
    artifact = Artifact(
        artifact_id=draw(texts) if artifact_id is None else artifact_id,
        name=draw(texts),
        parts=draw(st.lists(parts(), max_size=2)),
    )
    if (metadata := draw(objects)) is not None:
        artifact.metadata.update(metadata)
    return artifact


@st.composite
def statuses(draw: st.DrawFn) -> TaskStatus:
    status = TaskStatus(state=draw(st.sampled_from(TaskState.values())))
    if draw(st.booleans()):
        status.message.CopyFrom(draw(messages()))
        status.message.SetInParent()
    if draw(st.booleans()):
        status.timestamp.FromNanoseconds(draw(st.integers(0, 2**60)))
    return status


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    task = Task(
        id=TASK,
        context_id="c",
        status=draw(statuses()),
        history=draw(st.lists(messages(), max_size=3)),
        artifacts=draw(st.lists(artifacts(), max_size=3, unique_by=lambda a: a.artifact_id)),
    )
    if (metadata := draw(objects)) is not None:
        task.metadata.update(metadata)
    return task


class Flow:
    """A flow that takes what is planned, as the processor folds it."""

    def __init__(self) -> None:
        self.current: CurrentFlow | None = None
        self.events = 0

    def save(self, task: Task, event: Any) -> Any:
        """Save `task`; return the event that comes of it."""
        before = self.current
        save = plan_save(task, event, before)
        if before is None:
            created = {
                **dict.fromkeys(("controller_id", "goal", "owner_session_key"), "x"),
                **dict.fromkeys(("requester_origin", "current_step"), "x"),
                "state_json": {"context_id": "c"},
            }
            self._happens("created", created)
        for piece in save.pieces:
            step = {
                **dict.fromkeys(("id", "created_at", "updated_at"), "x"),
                "flow_id": TASK,
                "runtime": "mirrored",
                "child_session_key": None,
                "run_id": piece.run_id,
                "task": piece.task,
                "status": "succeeded",
                "result_json": piece.result_json,
            }
            self._happens("step_observed", {"step": step})
        before = self.current
        payload = {"patch": save.patch, "next_step": None}
        updated = self._happens("state_updated", payload)
        assert self.current is not None
        return event_after(before, self.current, updated)

    def _happens(self, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.events += 1
        event = {
            "id": self.events,
            "flow_id": TASK,
            "kind": kind,
            "payload_json": payload,
            "at": "2026-11-22T21:02:08.123Z",
            "revision": self.events,
            "status": "running",
        }
        self.current = fold(self.current, event)
        return event


@given(st.lists(tasks(), min_size=1, max_size=3))
def test_tasks_come_back_as_they_were_saved(saved: list[Task]) -> None:
    flow = Flow()
    for nth, task in enumerate(saved):
        event = flow.save(task, task)
        assert flow.current is not None
        assert task_of(flow.current) == task == event.event
        assert version_of(flow.current) == event.nth == nth + 1


@given(tasks(), st.data())
def test_the_events_of_a_task_come_back(task: Task, data: st.DataObject) -> None:
    flow = Flow()
    flow.save(task, task)
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            status = TaskStatusUpdateEvent(
                task_id=TASK, context_id="c", status=data.draw(statuses())
            )
            if (metadata := data.draw(objects)) is not None:
                status.metadata.update(metadata)
                task.metadata.MergeFrom(status.metadata)
            if task.status.HasField("message"):
                task.history.append(task.status.message)
            task.status.CopyFrom(status.status)
            assert flow.save(task, status).event == status
        else:
            update = TaskArtifactUpdateEvent(
                task_id=TASK,
                context_id="c",
                artifact=data.draw(artifacts(data.draw(st.sampled_from("ab")))),
                last_chunk=data.draw(st.booleans()),
            )
            known = [a for a in task.artifacts if a.artifact_id == update.artifact.artifact_id]
            update.append = bool(known) and data.draw(st.booleans())
            if update.append:
                known[0].parts.extend(update.artifact.parts)
                known[0].metadata.update(dict(update.artifact.metadata.items()))
            elif known:
                known[0].CopyFrom(update.artifact)
            else:
                task.artifacts.append(update.artifact)
            assert flow.save(task, update).event == update
        assert flow.current is not None
        assert task_of(flow.current) == task


@given(st.text(string.printable, max_size=300))
def test_any_artifact_id_names_a_step(artifact_id: str) -> None:
    task = Task(id=TASK, context_id="c", artifacts=[Artifact(artifact_id=artifact_id)])
    for piece in plan_save(task, None, None).pieces:
        assert 1 <= len(piece.run_id) <= 256
        assert 1 <= len(piece.task) <= 256
