"""What the nodes of an embedded cluster are configured to be."""

from pathlib import Path

from processor.embedded.cluster import CONTROLLER_ID, _configure, _folder
from processor.embedded.directory import open_directory

PORTS = {CONTROLLER_ID: 20_000, 1: 20_001, 2: 20_002, 3: 20_003}


async def configured(home: Path, node_id: int) -> dict[str, str]:
    """As Java reads it: of a repeated key the last counts."""
    async with open_directory(home / _folder(node_id)) as directory:
        _configure(directory, node_id, PORTS, {"num.io.threads": "2"})
        directory.format("cluster", node_id)
    return properties(home / _folder(node_id) / "server.properties")


def properties(path: Path) -> dict[str, str]:
    lines = path.read_text("ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


async def test_brokers_and_controller_are_one_cluster_and_hold_what_is_acknowledged_twice(
    tmp_path: Path,
) -> None:
    nodes = {node_id: await configured(tmp_path, node_id) for node_id in PORTS}

    assert {node["controller.quorum.voters"] for node in nodes.values()} == {"100@127.0.0.1:20000"}
    assert {nodes[n]["process.roles"] for n in (1, 2, 3)} == {"broker"}
    assert nodes[CONTROLLER_ID]["process.roles"] == "controller"
    assert nodes[CONTROLLER_ID]["listeners"] == "CONTROLLER://127.0.0.1:20000"
    assert (
        nodes[2]["listeners"] == nodes[2]["advertised.listeners"] == "PLAINTEXT://127.0.0.1:20002"
    )
    for node_id, node in nodes.items():
        meta = properties(tmp_path / _folder(node_id) / "logs" / "meta.properties")
        assert node["node.id"] == meta["node.id"] == f"{node_id}"
        assert meta["cluster.id"] == "cluster"
        assert node["num.io.threads"] == "2"
        # The controller holds partitions to it, and takes it from its own configuration.
        assert node["min.insync.replicas"] == node["transaction.state.log.min.isr"] == "2"
        for topic in ("default", "offsets.topic", "transaction.state.log"):
            assert node[f"{topic}.replication.factor"] == "3"
