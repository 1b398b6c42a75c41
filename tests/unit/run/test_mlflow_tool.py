"""What is sent to MLflow where its server refuses some of it."""

from __future__ import annotations

import pytest

from fabric_ppo.run.trackers.mlflow_tool import Mlflow
from fabric_ppo.run.trackers.tool import Row


class Client:
    """A server's client that takes a batch as a whole or not at all, as MLflow's do."""

    def __init__(self, refused, code="INVALID_PARAMETER_VALUE"):
        self.refused, self.code, self.points = refused, code, []

    def log_batch(self, run_id, metrics):
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import ErrorCode

        if len(metrics) > 1000 or any(point.key in self.refused for point in metrics):
            raise MlflowException("no such\nname", ErrorCode.Value(self.code))
        self.points += [(point.key, point.step, point.value) for point in metrics]


def tool_of(client):
    tool, lines = Mlflow(), []
    tool._client, tool._id, tool._refused, tool._warn = client, "run", set(), lines.append
    return tool, lines


def row(step, *tags):
    return Row(step, {"Time/step_per_second": 1.0, **{tag: float(step) for tag in tags}})


def test_a_metric_that_the_server_refuses_costs_that_metric_and_a_line():
    client = Client({"bad"})
    tool, lines = tool_of(client)
    tool.log([row(1, "good", "bad"), row(2, "good", "bad")])
    tool.log([row(3, "good", "bad")])
    assert lines == ["the metric bad is left out (no such)"]
    assert {(tag, step) for tag, step, _ in client.points} == {
        (tag, step) for tag in ("good", "Time/step_per_second") for step in (1, 2, 3)
    }
    assert len(client.points) == 6


def test_the_metric_that_marks_a_whole_row_comes_last():
    client = Client({"bad"})
    tool_of(client)[0].log([row(1, "good", "bad", "Z")])
    assert client.points[-1][0] == "Time/step_per_second"


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_more_metrics_than_mlflow_takes_in_a_request(count):
    client = Client(())
    tags = [f"Game/{index}" for index in range(count)]
    tool_of(client)[0].log([row(1, *tags), row(2, *tags)])
    assert len(client.points) == 2 * (count + 1)
    assert client.points[-1] == ("Time/step_per_second", 2, 1.0)


@pytest.mark.parametrize(
    "client", [Client({"bad"}, "RESOURCE_DOES_NOT_EXIST"), Client({"bad", "good", "Time/step_per_second"})]
)
def test_what_is_no_fault_of_single_metrics_is_an_error(client):
    """No line for each of them."""
    from mlflow.exceptions import MlflowException

    tool, lines = tool_of(client)
    with pytest.raises(MlflowException, match="no such"):
        tool.log([row(1, "good", "bad")])
    assert lines == []
