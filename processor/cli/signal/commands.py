"""`taskflow signal`: send signals to the flows that wait for them, and list undelivered ones.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.options import JSON_LINES, duration_ms, json_of
from processor.cli.common.output import console, for_people, plain, say, write_json
from processor.cli.common.rows import Column, moment, print_rows
from processor.cli.common.runner import run, settings_and_logs

app = typer.Typer(
    help="Send signals to the flows that wait for them, and list undelivered ones.",
    no_args_is_help=True,
)


@app.command("send")
def send(
    topic: str = typer.Argument(..., help="The topic that the flow's wait names."),
    correlation_id: str = typer.Argument(..., help="Its correlation id: a business key."),
    data: str | None = typer.Option(
        None, "--data", help="The payload: JSON, or @FILE, or @- for stdin."
    ),
    id_: str | None = typer.Option(
        None, "--id", help="The event's id; a signal sent again with it is delivered once."
    ),
    timeout: str = typer.Option("30s", "--timeout", help="How long to wait for Kafka."),
    json: bool = typer.Option(False, "--json", help="JSON also on a terminal."),
) -> None:
    """Send a signal: it ends the wait of the flow that waits for its topic and correlation id.

    `taskflow signals` must run to deliver it. A signal that comes before the flow waits is kept for
    TASKFLOW_SIGNAL_TTL. The command ends when Kafka has the signal; the audit shows its delivery.

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

    To give one another time to live, send it again with `taskflow signal send` and its id, topic
    and correlation id.

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
        say("No undelivered signals.")
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
