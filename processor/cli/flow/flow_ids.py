"""Find the flow whose id begins as typed: tables and `flow list` show 8 characters of it."""

from contextlib import aclosing
from typing import Final

from processor.adapters.sqlite.readonly import queries
from processor.cli.common.options import flow_id_of, is_prefix
from processor.cli.common.runner import Refused, WrongUse, run
from processor.cli.common.service_address import views_url
from processor.cli.flow.lookup import places_of, snapshots
from processor.cli.flow.view_lookup import shown_ids
from processor.settings import Settings

CANDIDATES: Final = 5
RECORDS_MAX: Final = 500_000
"""Limit of the records of `state` that are read to look an id up: some ten seconds."""


def flow_id_at(settings: Settings, text: str) -> str:
    """The id of the flow that `text` names, in full or by a unique beginning of its id.

    What is written in full is not looked up. Raises WrongUse, Refused if no flow's id begins so,
    or several do, and what `list_flows` raises.
    """
    prefix = text.lower()
    if not is_prefix(prefix):
        return flow_id_of(text)
    found = run(lambda: ids_with_prefix(settings, prefix))
    match found:
        case [flow_id]:
            return flow_id
        case []:
            raise Refused(
                f"No flow's id begins with {prefix} under {settings.topic_prefix!r}; a flow that "
                "was pruned is named by its full id."
            )
    shown = ", ".join(found[:CANDIDATES]) + (" …" if len(found) > CANDIDATES else "")
    raise WrongUse(f"{len(found)} flows' ids begin with {prefix}; type more of one: {shown}")


async def ids_with_prefix(settings: Settings, prefix: str) -> list[str]:
    """The ids of flows that begin with `prefix`, in order: from tables, else from the views, else
    from `state`, which has no index. Raises as `list_flows` does, and Refused if `state` has more
    than RECORDS_MAX records."""
    places = await places_of(settings)
    if places.topic and (known := await shown_ids(settings, prefix, CANDIDATES + 1)):
        return known
    found = set(queries.ids_with_prefix(places.tables.values(), prefix))
    count = 0
    async with aclosing(snapshots(settings, places.topic)) as records:
        async for key, value in records:
            count += 1
            if count > RECORDS_MAX:
                raise Refused(
                    f"Ids that begin with {prefix} cannot be looked up: the topic `state` has more "
                    f"than {RECORDS_MAX:,} records, there is no worker's table here, and no views "
                    f"at {views_url(settings)} know such an id. Type the full id, or start "
                    "`taskflow views`."
                )
            if key.startswith(prefix) and "/" not in key:
                (found.discard if value is None else found.add)(key)
    return sorted(found)
