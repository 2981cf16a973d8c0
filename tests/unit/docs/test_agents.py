"""The page about agents: what it shows runs, on the engine in memory."""

import importlib.util
from pathlib import Path

import pytest

from processor.testing.fake.taskflow import TaskflowFake
from tests.support.examples import examples

PAGE = Path(__file__).parents[3] / "processor" / "docs" / "agents.md"
REQUIREMENTS = PAGE.parents[2] / "tests" / "support" / "agents.txt"
HOME = Path.home() / ".cache" / "taskflow" / "agents"
"""Where `.ci/run` puts what the lock does not have: a framework in pure Python."""


@pytest.fixture
def frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the frameworks importable, or skip."""
    if importlib.util.find_spec("pydantic_ai") is None:
        if not (HOME / "pydantic_ai").is_dir():
            pytest.skip(
                f"Pydantic AI is missing: pip install --no-deps --require-hashes --target {HOME} "
                f"-r {REQUIREMENTS.relative_to(PAGE.parents[2])}"
            )
        monkeypatch.syspath_prepend(str(HOME))


@pytest.mark.usefixtures("frameworks")
@pytest.mark.parametrize("name", examples(PAGE.read_text("utf-8"), mark="agents"))
def test_what_the_page_shows_runs(
    taskflow_fake: TaskflowFake, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Takes a second of CPU: the framework's imports."""
    code = examples(PAGE.read_text("utf-8"), mark="agents")[name]
    exec(compile(code, f"{PAGE}#{name}", "exec"), {"__name__": "__main__"})
    (flow_id,) = {event.flow_id for event in taskflow_fake.events()}
    flow = taskflow_fake.flow(flow_id)
    assert flow is not None
    assert flow.status == "finished"
    assert "refunded order" in flow.state_json["output"]
    assert "waiting" in capsys.readouterr().out
    kinds = [event.kind for event in taskflow_fake.events(flow_id)]
    assert kinds.count("step_succeeded") == 2
