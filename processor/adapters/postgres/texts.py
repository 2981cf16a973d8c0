"""Make texts and JSON that PostgreSQL can hold. Pure.

PostgreSQL has no U+0000 in text and jsonb; U+FFFD replaces it.
"""

import re
from typing import Final

_ESCAPES: Final = re.compile(r"\\(?:u0000|.)", re.DOTALL)
_REPLACEMENT: Final = "\ufffd"


def text(value: str) -> str:
    """A text as PostgreSQL can hold it."""
    return value.replace("\0", _REPLACEMENT)


def json_text(doc: str) -> str:
    """JSON as PostgreSQL can hold it."""
    if "\\u0000" not in doc:
        return doc
    return _ESCAPES.sub(lambda found: _REPLACEMENT if len(found[0]) == 6 else found[0], doc)
