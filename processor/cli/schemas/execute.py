"""Register all schemas at a registry, for `taskflow schemas register`."""

from dataclasses import asdict, dataclass
from typing import Final, Literal

from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import WrongUse
from processor.cli.schemas.registry import SchemaRegistry, connected
from processor.contract.publication.subjects import subjects
from processor.settings import Settings

FROM_SETTING: Final = "-"

State = Literal["new", "next version", "there", "incompatible"]


@dataclass(slots=True)
class Registration:
    """A subject, and what is or would be done for it. `level`: its compatibility level before, None
    if it had none of its own; `id`: of the schema, None before it is registered."""

    subject: str
    state: State
    version: int | None
    level: str | None
    compatibility: str
    id: int | None = None


async def register_all(
    settings: Settings, registry: str, compatibility: str, *, dry_run: bool
) -> list[Registration]:
    """Look up all subjects, and register missing schemas unless one is incompatible.

    Raises WrongUse without an address, and Refused for an error of the registry.
    """
    url = registry
    if registry == FROM_SETTING:
        if settings.schema_registry is None:
            raise WrongUse(
                "The registry's address is missing: give --registry, or set "
                "TASKFLOW_SCHEMA_REGISTRY, such as https://registry.example:8081."
            )
        url = settings.schema_registry.get_secret_value()
    schemas = subjects(settings.topic_prefix)
    async with connected(url) as there:
        found = [
            await _looked_up(there, subject, schema, compatibility)
            for subject, schema in schemas.items()
        ]
        if dry_run or any(one.state == "incompatible" for one in found):
            return found
        for one in found:
            if one.level != compatibility:
                await there.set_level(one.subject, compatibility)
            if one.state != "there":
                one.id = await there.register(one.subject, schemas[one.subject])
                one.version = await there.version_of(one.subject, schemas[one.subject])
    return found


async def _looked_up(
    there: SchemaRegistry, subject: str, schema: str, compatibility: str
) -> Registration:
    version = await there.version_of(subject, schema)
    level = await there.level(subject)
    if version is not None:
        return Registration(subject, "there", version, level, compatibility)
    if not await there.exists(subject):
        return Registration(subject, "new", None, level, compatibility)
    state: State = "next version" if await there.fits(subject, schema) else "incompatible"
    return Registration(subject, state, None, level, compatibility)


def show(found: list[Registration], *, json: bool, dry_run: bool) -> bool:
    """Print the registrations, in a pipe as JSON lines; whether all schemas are compatible."""
    bad = [one.subject for one in found if one.state == "incompatible"]
    if for_people(json):
        rows = [
            (one.subject, _version(one), f"{one.level or 'the default'} → {one.compatibility}")
            if one.level != one.compatibility
            else (one.subject, _version(one), one.compatibility)
            for one in found
        ]
        console().print(table(None, ("subject", "version", "compatibility"), rows))
    else:
        for one in found:
            write_json(asdict(one))
    missing = sum(one.state in ("new", "next version") for one in found)
    if bad:
        say(
            f"{len(bad)} schemas are incompatible with registered versions: {', '.join(bad)}. "
            "Nothing was changed. Compare the versions, or choose another --compatibility."
        )
    elif dry_run:
        say(f"{missing} schemas would be registered, {len(found) - missing} are there already.")
    else:
        say(f"{missing} schemas were registered, {len(found) - missing} were there already.")
    return not bad


def _version(one: Registration) -> str:
    return one.state if one.version is None else f"{one.version} ({one.state})"
