"""ExecuTorch: what runs in INT8, threads that all sessions share, modules left out, silence; see test_converters.py."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import converters
from converters import STATIC
from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes import execu_torch
from leadline.runtimes.base import ExportOptions, SessionOptions, runtime
from leadline.runtimes.executorch_program import is_program, program_precision
from tiny_models import cnn, expected, exported, picture

pytestmark = pytest.mark.skipif(
    not runtime("executorch").availability().available,
    reason="executorch is not installed: pip install leadline[executorch]",
)
opened, error = partial(converters.opened, "executorch"), partial(converters.error, "executorch")


def test_fp32_is_all_xnnpack() -> None:
    assert opened("cnn", "fp32").precision_ran == "fp32"
    assert error("cnn", "fp32") < 1e-5


@pytest.mark.slow
def test_dynamic_int8_takes_the_linear_layers() -> None:
    assert opened("vit", "int8-dynamic").precision_ran.startswith("int8 (16 of ")
    assert error("vit", "int8-dynamic") < 0.1


@pytest.mark.slow
def test_a_transformer_in_fp32_and_static_int8() -> None:
    assert opened("vit", "fp32").precision_ran == "fp32"
    assert error("vit", "fp32") < 1e-4
    assert opened("vit", "int8-static").precision_ran.startswith("int8 (")
    assert error("vit", "int8-static") < 0.3


@pytest.mark.slow
def test_modules_can_stay_in_float(tmp_path: Path) -> None:
    options = dataclasses.replace(STATIC, exclude=("mobilenet.13",), per_channel=False)
    session = runtime("executorch").open(runtime("executorch").export(cnn(), options, tmp_path), SessionOptions())
    assert session.precision_ran == "int8 (38 of 41 layers)"


def test_sessions_that_want_different_threads_share_one_pool_safely() -> None:
    """ExecuTorch has one pool of threads for the process; a program that was loaded before it changed would crash."""
    from executorch.runtime import Runtime

    count = Runtime.get()._legacy_module._threadpool_get_thread_count
    values = picture(3, (64, 96))
    one, two = opened("cnn", "fp32", threads=1), opened("cnn", "fp32", threads=2)
    reference = expected(cnn(), values)
    for _ in range(3):
        for session, threads in ((one, 1), (two, 2)):
            np.testing.assert_allclose(session.run(values), reference, atol=1e-4)
            assert count() == threads


def test_an_unknown_module_to_exclude_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module of tiny-cnn to exclude 'nowhere'"):
        runtime("executorch").export(cnn(), dataclasses.replace(STATIC, exclude=("nowhere",)), tmp_path)


def test_a_missing_engine_is_named_when_a_bundle_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported("cnn", "executorch", "fp32")
    monkeypatch.setattr(execu_torch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"leadline\[executorch\]"):
        runtime("executorch").open(bundle, SessionOptions())


def test_a_program_of_another_size_is_refused(tmp_path: Path) -> None:
    good = exported("cnn", "executorch", "fp32")
    spec = good.contract.input.model_copy(update={"height": 96, "width": 64})
    other = dataclasses.replace(good, contract=good.contract.model_copy(update={"input": spec}))
    with pytest.raises(BundleError, match=r"does not fit its contract.*it has 1 x 3 x 64 x 96"):
        runtime("executorch").open(other, SessionOptions())


def test_bytes_that_are_no_program_have_no_precision() -> None:
    assert not is_program(b"")
    assert not is_program(np.random.default_rng(1).bytes(4000))
    assert program_precision(b"nothing" * 20) == "unknown"


@pytest.mark.slow
def test_exporting_prints_nothing_and_the_log_stays_ours(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    options = ExportOptions(size=(32, 32))
    runtime("executorch").export(cnn(), options, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
