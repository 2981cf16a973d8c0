"""Compare the rows of the sink with the topics for `taskflow verify --sink`."""

from processor.adapters.kafka.reader.topic_reader import read
from processor.cli.common.output import console, for_people, plain, say, table, write_json
from processor.cli.common.runner import run
from processor.cli.sink.execute import sink_dsn
from processor.contract.topics import Topics
from processor.settings import Settings
from processor.sink.comparison import TABLES, SinkReport, compare


def verify_sink(settings: Settings, given: str, *, json: bool) -> bool:
    """Print the report; whether no row differs."""
    dsn, topics = sink_dsn(settings, given), Topics(settings.topic_prefix)
    report = run(
        lambda: compare(dsn, settings.sink_schema, topics, lambda topic: read(settings, topic))
    )
    if for_people(json):
        _show(report)
    else:
        write_json(report.as_json())
    return report.ok


def _show(report: SinkReport) -> None:
    out = console()
    rows = [
        (f"taskflow_{name}", f"{report.compared[name]:,}", f"{report.differing[name]:,}")
        for name in TABLES
    ]
    out.print(table(None, ("table", "rows compared", "rows that differ"), rows))
    for one in report.shown:
        out.print(plain(f"{one['table']} {one['id']}: {one['row']}"), style="red")
    if report.behind:
        out.print(
            plain(
                f"not compared: {report.behind:,} events that are not written yet, and the "
                f"{report.changed_flows:,} flows that they change"
            ),
            style="dim",
        )
    if report.ok:
        say("The sink has what the topics say, each row once.")
    else:
        say(f"{sum(report.differing.values()):,} rows differ from what the topics say.")
