"""The subjects of a schema registry, and the JSON Schema of each."""

import json
from collections.abc import Mapping
from typing import Final

from processor.contract.publication.asyncapi import CARRIES
from processor.contract.publication.json_schemas import json_schemas

RAW: Final = "dead-letter"
"""Bytes of any kind, without a schema."""


def subjects(prefix: str) -> Mapping[str, str]:
    """By subject, the JSON Schema of the values of a topic under `prefix`, as a text.

    A topic with values of one kind has `{topic}-value`, registries' default; one with several has
    `{topic}-{title}` for each (TopicRecordNameStrategy).
    """
    schemas = json_schemas()
    found: dict[str, str] = {}
    for channel, messages in CARRIES.items():
        for message in messages:
            if message != RAW:
                schema = schemas[message]
                kind = "value" if len(messages) == 1 else schema["title"]
                found[f"{prefix}.{channel}-{kind}"] = json.dumps(schema, ensure_ascii=False)
    return found
