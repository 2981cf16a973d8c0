"""`taskflow deploy`: write manifests for Kubernetes, or units for systemd.

What the commands need is imported when they run.
"""

from pathlib import Path
from typing import Annotated

import typer

from processor.ops.deployment.operators import Operator

app = typer.Typer(
    help="Write manifests for Kubernetes, or units for systemd.", no_args_is_help=True
)

NAME = typer.Option(None, "--name", help="What all names begin with; else it is the topic prefix.")
PROCESSES = typer.Option(
    1, "--processes", min=1, help="Of each worker, as in `taskflow worker --processes`."
)
OUTPUT = typer.Option(
    None, "--output", "-o", metavar="DIR", help="Write files there, not to standard output."
)
WITHOUT = typer.Option(
    [], "--without", help="An operator that the cluster does not have; may be given again."
)
PROGRAM = typer.Option(
    None, "--program", help="Where `taskflow` is installed; else where this one is."
)
YES = typer.Option(False, "--yes", "-y", help="Replace files that are there.")


@app.command("kubernetes")
def kubernetes(
    container: Annotated[
        str,
        typer.Option("--image", help="The container image, as processor/ops/deployment makes it."),
    ],
    name: str | None = NAME,
    namespace: str | None = typer.Option(
        None, "--namespace", "-n", help="Stands in each manifest; else kubectl says."
    ),
    workers: int = typer.Option(
        2, "--workers", min=1, help="How many workers; with KEDA, at least."
    ),
    processes: int = PROCESSES,
    views: int = typer.Option(1, "--views", min=0, help="How many view workers."),
    signals: int = typer.Option(
        0, "--signals", min=0, help="How many processes of `taskflow signals`, with its topics."
    ),
    outbox: int = typer.Option(
        0, "--outbox", min=0, help="How many relays of `taskflow outbox`; one of them sends."
    ),
    storage: str = typer.Option(
        "10Gi", "--storage", metavar="SIZE", help="Of each worker and view worker, for its tables."
    ),
    kafka_cluster: str = typer.Option(
        "my-cluster", "--kafka-cluster", help="The name of Strimzi's Kafka resource."
    ),
    ca_secret: str | None = typer.Option(
        None,
        "--ca-secret",
        help="The Secret whose `ca.crt` to trust, or `system`; else Strimzi's, or without Strimzi "
        "the system's.",
    ),
    without: list[Operator] = WITHOUT,
    output: Path | None = OUTPUT,
    yes: bool = YES,
) -> None:
    """Write the manifests of workers, views, signals and an outbox's relay, with topics and rights.

    Settings in the environment go into the manifests, but no secrets: pods read these from files
    that Kubernetes Secrets give. processor/docs/deploying.md names them. It asks no broker and no
    cluster.

    Example: `TASKFLOW_BOOTSTRAP_SERVERS=my-cluster-kafka-bootstrap:9093 TASKFLOW_PARTITIONS=12
    TASKFLOW_REPLICATION_FACTOR=3 TASKFLOW_SECURITY_PROTOCOL=SASL_SSL taskflow deploy kubernetes
    --image registry.example.org/taskflow:1 | kubectl apply -f -`

    Settings: those of `taskflow worker`, `taskflow views`, `taskflow signals` and `taskflow
    outbox`; TASKFLOW_REPLICATION_FACTOR.
    """
    from processor.cli.deploy.execute import KubernetesOptions, write_manifests

    write_manifests(
        KubernetesOptions(
            name=name,
            container=container,
            namespace=namespace,
            workers=workers,
            processes=processes,
            views=views,
            signals=signals,
            outbox=outbox,
            storage=storage,
            kafka_cluster=kafka_cluster,
            ca_secret=ca_secret,
            without=frozenset(without),
        ),
        output,
        replace=yes,
    )


@app.command("systemd")
def systemd(
    name: str | None = NAME,
    program: Path | None = PROGRAM,
    processes: int = PROCESSES,
    signals: bool = typer.Option(False, "--signals", help="A unit for `taskflow signals`, too."),
    outbox: bool = typer.Option(False, "--outbox", help="A unit for `taskflow outbox`, too."),
    output: Path | None = OUTPUT,
    yes: bool = YES,
) -> None:
    """Write units for `taskflow worker` and `taskflow views`, and for others on request.

    Settings in the environment go into the units, but no secrets: name a file by the variable with
    the ending `_FILE`, and systemd gives it to the service as a credential.

    Example: `TASKFLOW_BOOTSTRAP_SERVERS=kafka-1:9092 TASKFLOW_PARTITIONS=12 taskflow deploy systemd
    --output /etc/systemd/system`

    Settings: those of `taskflow worker` and `taskflow views`, and of the others.
    """
    from processor.cli.deploy.execute import SystemdOptions, write_units

    options = SystemdOptions(name, program, processes, signals=signals, outbox=outbox)
    write_units(options, output, replace=yes)
