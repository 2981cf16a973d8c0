"""Cut goals into the words that they are found by.

Chinese, Japanese and Korean are written without spaces, or with endings: their text is cut into
pairs of neighbours, by which a word of any length is found wherever it stands.
"""

import re
from typing import Final

_CJK: Final = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN: Final = re.compile(f"[{_CJK}]+")
_PART: Final = re.compile(f"[{_CJK}]+|[^\\W_{_CJK}]+")


def indexed(text: str) -> str:
    """What the index is given for `text`."""
    return text if text.isascii() else _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} ", text)


def wanted(text: str) -> str:
    """The query of the index for all words of `text`, the last one as a beginning; empty if it has
    none."""
    terms: list[str] = []
    parts = _PART.findall(text)
    for nth, part in enumerate(parts):
        if not _RUN.fullmatch(part):
            terms.append(f'"{part}"{"*" if nth == len(parts) - 1 else ""}')
        elif len(part) == 1:
            terms.append(f'"{part}"*')
        else:
            terms += [f'"{pair}"' for pair in _pairs(part)[:-1]]
    return " ".join(terms)


def _pairs(run: str) -> list[str]:
    """Each sign with the one behind it; the last one alone, so that it is found as well."""
    return [run[at : at + 2] for at in range(len(run))]
