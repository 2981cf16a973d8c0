"""`taskflow signal`: send events to whichever flow waits, and list what was not delivered.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.options import JSON_LINES, duration_ms, json_of
from processor.cli.common.output import console, for_people, plain, say, write_json
from processor.cli.common.rows import Column, moment, print_rows
from processor.cli.common.runner import run, settings_and_logs

app = typer.Typer(
    help="Send events to whichever flow waits, and list what was not delivered.",
    no_args_is_help=True,
)


@app.command("send")
def send(
    topic: str = typer.Argument(..., help="The topic that the flow's wait names."),
    correlation_id: str = typer.Argument(..., help="Its correlation id: the business key."),
    data: str | None = typer.Option(
        None, "--data", help="What happened: JSON, or @FILE, or @- for stdin."
    ),
    id_: str | None = typer.Option(
        None, "--id", help="Of the event: sent again with it, it is delivered once."
    ),
    timeout: str = typer.Option("30s", "--timeout", help="How long to wait for Kafka."),
    json: bool = typer.Option(False, "--json", help="JSON also on a terminal."),
) -> None:
    """Send a signal: it ends the wait of the flow that waits for its topic and correlation id.

    It may come before the flow waits: `taskflow signals`, which must run, keeps it for
    TASKFLOW_SIGNAL_TTL. It is sent when Kafka has it; whether a flow took it stands in the audit.

    Example: `taskflow signal send payments order-17 --data '{"paid": true}' --id pay-17`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.client.signals.signal_client import SignalClient, SignalReceipt

    settings = settings_and_logs(quiet=True)
    payload = None if data is None else json_of(data, "--data")
    timeout_s = duration_ms(timeout, "--timeout") / 1000

    async def sent() -> SignalReceipt:
        async with SignalClient(settings) as client:
            return await client.send(topic, correlation_id, payload, id=id_, timeout_s=timeout_s)

    receipt = run(sent)
    if for_people(json):
        console().print(plain(f"sent: signal {receipt.id} to {receipt.topic}"))
    else:
        write_json(receipt._asdict())


@app.command("deadletters")
def deadletters(json: bool = JSON_LINES) -> None:
    """List the signals that were not delivered, the newest last, with the reason of each.

    The value of one that is whole can be sent again as it is, and then has another time to live:
    `taskflow signal send`, with the id, the topic and the correlation id that it had.

    Example: `taskflow signal deadletters --json`

    Settings: as for `taskflow signal send`.
    """
    from processor.cli.signal.dead_letters import undelivered

    settings = settings_and_logs(quiet=True)
    found = run(lambda: undelivered(settings))
    if not for_people(json):
        for one in found:
            write_json(one)
        return
    if not found:
        say("Every signal was delivered, or waits for a flow.")
        return
    columns = (
        *(Column("at"), Column("code"), Column("topic", 8, 2), Column("correlation id", 8, 1)),
        *(Column("id", 8, 3), Column("why", 20, 4)),
    )
    rows = [
        (
            *(moment(one["at"]), one["code"], one["topic"] or "", one["correlation_id"] or ""),
            *(one["id"] or "", one["message"]),
        )
        for one in found
    ]
    print_rows(console(), columns, rows)
