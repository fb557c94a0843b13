"""What a Ray task's end becomes here; a stand-in takes the cluster's place (test_netadapt.py starts a real one)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from leadline.errors import DataError, ProcessError
from leadline.ray_cluster import result


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("traceback of the worker")
        self.cause = cause


def ray(get: Callable[[Any], Any]) -> SimpleNamespace:
    return SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))


def failing(error: Exception) -> SimpleNamespace:
    def get(ticket: Any) -> Any:
        raise error

    return ray(get)


def test_an_answer_is_passed_on() -> None:
    assert result(ray(lambda ticket: ticket + 1), 2) == 3


def test_our_errors_come_back_as_they_were_raised() -> None:
    ours = DataError("no picture", where="folder")
    with pytest.raises(DataError) as caught:
        result(failing(RayTaskError(ours)), 0)
    assert caught.value is ours


def test_other_errors_of_a_task_keep_ray_s_traceback() -> None:
    with pytest.raises(RayTaskError, match="traceback of the worker"):
        result(failing(RayTaskError(KeyError("x"))), 0)


def test_a_lost_process_says_that_the_run_continues() -> None:
    with pytest.raises(ProcessError, match=r"a process died: killed by the system\. Run it again"):
        result(failing(RayError("killed by the system\nmore")), 0)
