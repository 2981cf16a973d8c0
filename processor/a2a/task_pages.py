"""Return tasks page by page, with the SDK's order and page tokens."""

from collections.abc import Sequence

from a2a.types import ListTasksRequest, ListTasksResponse
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE
from a2a.utils.errors import InvalidParamsError
from a2a.utils.task import ListTasksCursor, decode_list_tasks_cursor, encode_list_tasks_cursor
from google.protobuf.timestamp_pb2 import Timestamp

from processor.a2a.documents import state_of, task_of
from processor.client import CurrentFlow


def page_of(flows: Sequence[CurrentFlow], params: ListTasksRequest) -> ListTasksResponse:
    """Return the page of `flows` that `params` asks for, the last changed first.

    Tasks are made only for the page. Raises InvalidParamsError for an invalid page token.
    """
    found = [
        (_cursor(flow), flow)
        for flow in flows
        if (not params.context_id or flow.flow.state_json["context_id"] == params.context_id)
        and (not params.status or state_of(flow) == params.status)
    ]
    if params.HasField("status_timestamp_after"):
        since_ns = params.status_timestamp_after.ToNanoseconds()
        found = [(at, f) for at, f in found if (at.timestamp_ns or -1) >= since_ns]
    found.sort(key=lambda pair: pair[0].sort_key(), reverse=True)
    total = len(found)
    if params.page_token:
        cursor = decode_list_tasks_cursor(params.page_token)
        if cursor is None:
            raise InvalidParamsError(f"Invalid page token: {params.page_token}")
        found = [(at, f) for at, f in found if at.sort_key() < cursor.sort_key()]
    size = params.page_size or DEFAULT_LIST_TASKS_PAGE_SIZE
    page = found[:size]
    return ListTasksResponse(
        tasks=[task for _, flow in page if (task := task_of(flow)) is not None],
        next_page_token=encode_list_tasks_cursor(page[-1][0]) if len(found) > size else "",
        page_size=size,
        total_size=total,
    )


def _cursor(current: CurrentFlow) -> ListTasksCursor:
    status = current.flow.state_json["status"]
    at = Timestamp()
    text = status.get("timestamp")
    if text is not None:
        at.FromJsonString(text)
    return ListTasksCursor(
        timestamp_ns=None if text is None else at.ToNanoseconds(),
        task_id=current.flow.state_json.get("id", current.flow.id),
    )
