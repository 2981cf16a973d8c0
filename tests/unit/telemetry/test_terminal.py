"""What a terminal would obey is shown to it, in every way that the program writes."""

import io
import json
import logging
import sys
from collections.abc import Callable

import pytest
import structlog
from rich.text import Text

from processor.cli.common import output, rows
from processor.settings import Settings
from processor.telemetry.logging import configure_logs
from processor.telemetry.terminal import OBEYED, visible, visible_json
from tests.support.terminal import on_a_terminal, without_styles

HOSTILE = (
    "\x1b]0;title\x07\x00\x08\r\x7f\x85\x9b31m\u061c\u200e\u200f\u202a\u202e\u2028\u2066\u2069"
    "\u200b\ufeff\U000e0041"
)
HARMLESS = "ü \U0001f469\u200d\U0001f680 می\u200cخواهم"


def test_what_it_would_obey_is_written_out_and_the_rest_stays() -> None:
    assert visible("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert visible("\U000e0041\ud800") == "\\U000e0041\\ud800"
    assert visible("a\n\tb\r", keep="\n\t") == "a\n\tb\\x0d"
    assert visible(HARMLESS) == HARMLESS
    assert not OBEYED.search(visible(HOSTILE))


def test_json_with_escapes_is_the_same_json() -> None:
    value = {"goal": HOSTILE + HARMLESS, HOSTILE: 1}
    shown = visible_json(json.dumps(value, ensure_ascii=False))

    assert json.loads(shown) == value
    assert not OBEYED.search(shown)
    assert HARMLESS in shown


@pytest.mark.parametrize(
    "write",
    [
        lambda: output.write_line(json.dumps({"goal": HOSTILE}, ensure_ascii=False).encode()),
        lambda: output.write_line(HOSTILE.encode() + b"\xff\x9b"),
        lambda: output.write_json({HOSTILE: HOSTILE}),
        lambda: output.say(HOSTILE),
        lambda: output.console().print(HOSTILE, markup=False),
        lambda: output.console().print(Text(HOSTILE, style="red"), style="bold"),
        lambda: output.console().print(output.table(HOSTILE, (HOSTILE,), [(HOSTILE,)])),
        lambda: output.console().print(
            output.table(None, ("code",), [(Text(HOSTILE, style="red"),)])
        ),
        lambda: rows.print_rows(
            output.console(), ("a", "b"), [(HOSTILE, output.status_text(HOSTILE))]
        ),
        lambda: log(Settings(log_format="console")),
        lambda: log(Settings(log_format="json")),
    ],
)
def test_a_terminal_gets_nothing_that_it_would_obey(
    write: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = without_styles(on_a_terminal(monkeypatch, write))

    assert shown, "something is shown"
    assert not OBEYED.search(shown), ascii(shown)


def log(settings: Settings) -> None:
    """What a worker would say of hostile values."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs(settings)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        structlog.get_logger().exception(
            HOSTILE, key=HOSTILE, raw=HOSTILE.encode(), doc={"a": HOSTILE}
        )
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_a_pipe_gets_bytes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))

    output.write_line(HOSTILE.encode() + b"\xff")
    output.write_json({"a": HOSTILE})
    sys.stdout.flush()

    first = HOSTILE.encode() + b"\xff\n"
    assert raw.getvalue()[: len(first)] == first
    assert (
        raw.getvalue()[len(first) :]
        == json.dumps({"a": HOSTILE}, ensure_ascii=False, separators=(",", ":"))
        .replace("\x7f", "\x7f")
        .encode()
        + b"\n"
    )
