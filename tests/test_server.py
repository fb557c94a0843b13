"""The server: what it answers, reloads, says of itself, and how it stops."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

from leadline.colors import colorize
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError
from leadline.live.server.answers import statistics
from leadline.live.server.guard import Access, default_hosts
from leadline.live.server.metrics import Counter, Histogram
from leadline.live.server.opening import wanted_models
from leadline.predictor import load
from serving import Running, ask, bundle, jpeg, opened, parsed, running, stream, wait_until
from tiny_models import exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(opened([f"tiny={folder}", f"fixed={folder}"])) as here:
        yield here


@pytest.fixture(scope="module")
def truth(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Depth:
    """What the package itself computes of the same file."""
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    path.write_bytes(jpeg())
    with load(folder) as predictor:
        return predictor.predict(path)


# ---- Answers


def test_npy_holds_the_raw_values(server: Running, truth: Depth) -> None:
    answer = ask(server, format="npy")
    values = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, truth.values)
    assert answer.headers["depth-kind"] == truth.kind == Kind.METRIC_DEPTH
    assert answer.headers["depth-unit"] == "m"
    assert answer.headers["depth-model"] == "tiny"
    assert answer.headers["depth-runtime"] == "onnxruntime"
    assert re.fullmatch(r"before;dur=.*, wait;dur=.*, network;dur=.*, after;dur=.*", answer.headers["server-timing"])


def test_png16_says_its_scale_in_headers_and_in_the_file(server: Running, truth: Depth) -> None:
    answer = ask(server)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as image:
        codes = np.array(image)
        said = json.loads(image.text["Depth"])
    scale, offset = float(answer.headers["depth-scale"]), float(answer.headers["depth-offset"])
    np.testing.assert_allclose(scale * codes + offset, truth.values, atol=0.51 * scale)
    assert said["scale"] == pytest.approx(scale)
    assert said["kind"] == "metric_depth"
    assert said["unit"] == "m"


def test_colours_are_the_packages(server: Running, truth: Depth) -> None:
    answer = ask(server, format="color")
    with Image.open(io.BytesIO(answer.content)) as image:
        shown = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(shown, colorize(truth))
    assert float(answer.headers["depth-low"]) == pytest.approx(np.percentile(truth.values, 2), rel=1e-3)


def test_statistics(server: Running, truth: Depth) -> None:
    facts = ask(server, format="json").json()
    assert (facts["height"], facts["width"], facts["valid_share"]) == (48, 64, 1.0)
    assert facts["minimum"] == pytest.approx(float(truth.values.min()))
    assert facts["percentiles"]["50"] == pytest.approx(float(np.median(truth.values)), rel=1e-5)


def test_statistics_of_nothing_are_null_and_not_nan() -> None:
    facts = statistics(Depth(np.zeros((4, 5), np.float32), Kind.METRIC_DEPTH))
    assert facts["minimum"] is None
    assert facts["percentiles"]["50"] is None
    assert json.loads(json.dumps(facts, allow_nan=False))["valid_share"] == 0


def test_a_smaller_answer_keeps_the_shape(server: Running) -> None:
    values = np.load(io.BytesIO(ask(server, jpeg(60, 120), format="npy", max_side=40).content))
    assert values.shape == (20, 40)
    assert np.load(io.BytesIO(ask(server, format="npy", max_side=4000).content)).shape == (48, 64)


def test_a_form_with_a_file_and_a_wrong_name(server: Running, truth: Depth) -> None:
    files = {"picture": ("../../etc/x", jpeg(), "image/jpeg")}
    answer = server.client.post("v1/depth", params={"format": "npy"}, files=files)
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), truth.values)


def test_a_turned_picture_is_turned_once(server: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = ask(server, jpeg(40, 80, exif=exif), format="json").json()
    assert (turned["height"], turned["width"]) == (80, 40)


def test_the_camera_is_said(server: Running, folder: Path) -> None:
    assert ask(server).headers["depth-camera"] in ("assumed", "unknown")
    given = ask(server, format="npy", fov=60)
    assert (given.headers["depth-camera"], given.headers["depth-fov"]) == ("given", "60")
    with load(folder) as predictor:
        pixels = np.array(Image.open(io.BytesIO(jpeg())))
        expected = predictor.predict(pixels, Intrinsics.from_fov(60, 48, 64)).values
    np.testing.assert_allclose(np.load(io.BytesIO(given.content)), expected, rtol=1e-6)


def test_models_runtimes_and_limits_are_listed_without_paths(server: Running, folder: Path) -> None:
    answer = server.client.get("v1/models")
    facts = answer.json()
    assert facts["default"] == "tiny"
    assert [model["name"] for model in facts["models"]] == ["tiny", "fixed"]
    assert facts["models"][0]["runtimes"] == [{"runtime": "onnxruntime", "precision": "fp32"}]
    assert str(folder) not in answer.text
    assert ask(server, model="fixed").headers["depth-model"] == "fixed"


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"model": "tinny"}, 404, "did you mean 'tiny'?"),
        ({"runtime": "tensorrt"}, 404, "does not run in"),
        ({"format": "exr"}, 422, "format"),
        ({"fov": "nan"}, 422, "fov"),
        ({"fov": 200}, 422, "fov"),
        ({"max_side": 0}, 422, "max_side"),
    ],
)
def test_bad_parameters_are_refused_in_words(
    server: Running, query: dict[str, object], status: int, words: str
) -> None:
    answer = ask(server, **query)
    assert answer.status_code == status
    assert words in answer.json()["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "nothing", 404), ("GET", "v1/depth", 405)])
def test_errors_of_the_router_are_json_too(server: Running, method: str, path: str, status: int) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_health_and_metrics(server: Running) -> None:
    assert server.client.get("healthz").json() == {"status": "ok"}
    assert server.client.get("readyz").json() == {"status": "ready"}
    ask(server)
    answer = server.client.get("metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(r'leadline_requests_total\{route="/v1/depth",method="POST",status="200"\} \d+', answer.text)
    assert re.search(r"process_resident_memory_bytes \d{7,}", answer.text)
    for line in answer.text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [-+.e\d]+', line)


def test_metric_lines_by_hand() -> None:
    counter = Counter("a_total", "A.", ("why",))
    counter.add('a "quoted"\nword')
    assert list(counter.lines()) == ['a_total{why="a \\"quoted\\"\\nword"} 1']
    times = Histogram("t", "T.", (), (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        times.add(value)
    assert list(times.lines()) == [
        't_bucket{le="1"} 2',
        't_bucket{le="2"} 3',
        't_bucket{le="+Inf"} 4',
        "t_sum 12",
        "t_count 4",
    ]


# ---- Reload


def test_a_replaced_bundle_is_taken_once_it_is_proven_and_a_broken_one_never(tmp_path: Path) -> None:
    place, said = bundle(tmp_path), []
    models = opened([f"tiny={place}"], said=said)
    with running(models) as here:
        before = ask(here, format="npy").content
        broken = bundle(tmp_path / "broken")
        weights = broken / "model.onnx"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        swap(place, broken, tmp_path / "old")
        wait_until(lambda: said)
        assert "the new one is refused and the old one stays" in said[0]
        assert ask(here, format="npy").content == before
        assert here.client.get("v1/models").json()["models"][0]["newer_refused"] is True

        swap(place, exported("cnn", "onnxruntime", "int8-weights").folder, tmp_path / "older", copy=True)
        wait_until(lambda: len(said) > 1)
        assert "replaced while running" in said[1]
        after = ask(here, format="npy")
        assert after.status_code == 200
        assert after.content != before
        listed = here.client.get("v1/models").json()["models"][0]
        assert (listed["reloads"], listed["newer_refused"]) == (1, False)


def swap(place: Path, new: Path, old: Path, copy: bool = False) -> None:
    place.rename(old)
    if copy:
        shutil.copytree(new, place)
        os.utime(place / "manifest.json")
    else:
        new.rename(place)


# ---- Against its own description


def test_its_own_openapi_holds(folder: Path) -> None:
    """Requests made up from /openapi.json get answers that /openapi.json knows, and never a 500."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]
    asked: set[str] = set()
    with running(opened([f"tiny={folder}"])) as here:
        schema = schemathesis.openapi.from_url(f"{here.address}openapi.json")

        def check(case: object) -> None:
            case.call_and_validate(checks=checks)  # type: ignore[attr-defined]
            asked.add(case.operation.label)  # type: ignore[attr-defined]

        quiet = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        for operation in schema.get_all_operations():
            quiet(_given(operation.ok(), check))()
    assert {"POST /v1/depth", "GET /v1/models", "GET /healthz", "GET /metrics"} <= asked


def _given(operation: object, check: object):
    from hypothesis import given

    @given(case=operation.as_strategy())  # type: ignore[attr-defined]
    def run(case: object) -> None:
        check(case)  # type: ignore[operator]

    return run


# ---- Names, references, addresses


def test_models_are_named_by_reference_or_by_hand(folder: Path) -> None:
    models = wanted_models(["leadline-s", f"mine={folder}"], ["openvino", "onnxruntime"], 1)
    assert [model.name for model in models] == ["leadline-s", "mine"]
    assert models[0].runtimes == ("openvino", "onnxruntime")
    assert models[1].runtimes == ("",)  # a bundle runs in its own engine
    with pytest.raises(ConfigError, match="two models of one name"):
        wanted_models(["leadline-s", f"leadline-s={folder}"], [], 1)
    with pytest.raises(ConfigError, match="unknown runtime"):
        wanted_models(["leadline-s"], ["tensorflow"], 1)
    with pytest.raises(ConfigError, match="cannot serve a model as"):
        wanted_models(["a b=leadline-s"], [], 1)


def test_default_hosts() -> None:
    assert default_hosts("127.0.0.1") == ("localhost", "127.0.0.1", "::1")
    assert "192.168.1.5" in default_hosts("192.168.1.5")
    assert "*" in default_hosts("0.0.0.0")


def test_a_token_is_wanted_of_requests_and_streams_but_not_of_the_page(folder: Path) -> None:
    token = "correct-horse"
    with running(opened([f"tiny={folder}"]), access=Access(token=token)) as here:
        for path in ("v1/models", "metrics", "openapi.json"):
            answer = here.client.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "token" in answer.json()["error"]
            assert here.client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert here.client.get("v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert here.client.get("").status_code == 200
        assert here.client.get("healthz").status_code == 200
        with pytest.raises(InvalidStatus) as refused, stream(here):
            pass
        assert refused.value.response.status_code == 401
        offered = ["leadline", "bearer.Y29ycmVjdC1ob3JzZQ"]  # base64url of the token
        with stream(here, subprotocols=offered) as socket:
            assert socket.subprotocol == "leadline"
            socket.send(jpeg())
            assert parsed(socket.recv(20))[0]["frame"] == 0
