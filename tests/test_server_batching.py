"""The server: how requests share an engine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from leadline.live.server.batching import Batching, EngineThread
from leadline.live.server.limits import Limits
from leadline.runtimes.base import Session
from serving import ask, bundle, jpeg, opened, running
from tiny_models import cnn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("served"))


class Slow(Session):
    """Adds one, slowly; remembers how many pictures came together."""

    precision_ran = "fp32"

    def __init__(self, seconds: float = 0.0, one_by_one: bool = False) -> None:
        super().__init__("slow", cnn().contract)
        self.seconds, self.batches, self._one_by_one, self.is_closed = seconds, [], one_by_one, False

    def _infer(self, values: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        self.batches.append(len(values))
        return values[:, :1] + 1

    def close(self) -> None:
        self.is_closed = True


def inputs(count: int) -> list[np.ndarray]:
    return [np.full((1, 3, 64, 96), index, np.float32) for index in range(count)]


@pytest.mark.parametrize(("one_by_one", "most"), [(False, 4), (True, 1)])
def test_waiting_pictures_are_joined_where_the_session_takes_them(one_by_one: bool, most: int) -> None:
    session = Slow(0.02, one_by_one)
    thread = EngineThread(session, Batching(0.2, 4), "slow")
    futures = [thread.run(values) for values in inputs(6)]
    outputs = [future.result(20).output for future in futures]
    assert max(session.batches) == most
    assert sum(session.batches) == 6
    for index, output in enumerate(outputs):  # each got its own
        np.testing.assert_array_equal(output, np.full((1, 1, 64, 96), index + 1, np.float32))
    thread.close()


def test_one_bad_picture_does_not_spoil_its_batch() -> None:
    thread = EngineThread(Slow(), Batching(0.2, 3), "slow")
    values = inputs(3)
    values[1][:] = np.nan
    good, bad, further = [thread.run(each) for each in values]
    assert good.result(20).output.mean() == 1
    assert further.result(20).output.mean() == 3
    assert "NaN" in str(bad.exception(20))
    thread.close()


def test_a_cancelled_picture_never_runs_and_closing_comes_last() -> None:
    session = Slow(0.1)
    thread = EngineThread(session, Batching(), "slow")
    first, second, third = [thread.run(values) for values in inputs(3)]
    time.sleep(0.03)
    assert second.cancel()
    thread.close()
    assert third.result(20).output.mean() == 3
    assert first.done()
    assert session.batches == [1, 1]
    thread._thread.join(20)
    assert session.is_closed


# ---- Many at once


def test_fifty_at_once_are_answered_or_told_to_come_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = opened([f"tiny={folder}"])
    session = next(iter(models.served["tiny"].engines.values())).thread.session
    quick, infer = session._infer, time.sleep
    monkeypatch.setattr(session, "_infer", lambda values: (infer(0.05), quick(values))[1])
    with running(models, Limits(waiting=8)) as here, ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda seed: ask(here, jpeg(seed=seed), format="json"), range(50)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 8
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                assert "busy" in answer.json()["error"]
        assert ask(here).status_code == 200  # and goes on
        state = here.app.state.leadline
        assert (state.waiting.taken, state.bodies.taken) == (0, 0)
