"""The browser's bundle: the page's own arithmetic against ours, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from leadline.colors import color_indices, display_range
from leadline.contract import Camera, Contract, InputSpec, OutputSpec
from leadline.depth import Depth, Intrinsics, Kind
from leadline.runtimes import web

NODE = """
import { readFileSync, writeFileSync } from 'node:fs';
const [page, folder] = process.argv.slice(1);
const { prepare, restore, sizeFor } = await import(`${page}/contract.js`);
const { colorIndices, displayRange } = await import(`${page}/colors.js`);
const { npy } = await import(`${page}/npy.js`);
const floats = (name) => new Float32Array(new Uint8Array(readFileSync(`${folder}/${name}`)).buffer);
const keep = (name, values) => writeFileSync(`${folder}/${name}`, new Uint8Array(values.buffer));
const answers = JSON.parse(readFileSync(`${folder}/cases.json`)).map((the, i) => {
  const { contract, height, width, degrees } = the;
  const rgba = new Uint8ClampedArray(new Uint8Array(readFileSync(`${folder}/${i}.rgba`)).buffer);
  const input = prepare(contract, rgba, height, width);
  keep(`${i}.input`, input.data);
  const map = floats(`${i}.map`);
  const values = restore(contract, { data: map, dims: [1, 1, the.h, the.w] }, height, width, degrees);
  writeFileSync(`${folder}/${i}.npy`, npy(values, height, width));
  const kind = contract.output.kind;
  const [lo, hi] = displayRange(floats(`${i}.values`), kind);
  keep(`${i}.colors`, colorIndices(floats(`${i}.values`), kind, the.lo, the.hi));
  return { size: sizeFor(contract, height, width), lo, hi };
});
writeFileSync(`${folder}/answers.json`, JSON.stringify(answers));
"""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONTRACTS: dict[str, dict[str, Any]] = {
    "shrunk-bilinear": {},
    "shrunk-bicubic": {"interpolation": "bicubic", "mean": MEAN, "std": STD},
    "plain-bilinear": {"antialias": False, "mean": MEAN, "std": STD},
    "plain-bicubic-bgr": {"antialias": False, "interpolation": "bicubic", "channels": "bgr", "value_max": 255.0},
    "nearest": {"interpolation": "nearest", "channels": "bgr"},
    "whole-aspect": {"resize": "keep_aspect", "dynamic": True, "multiple_of": 14, "height": 42, "width": 56},
    "largest-side": {"resize": "keep_aspect", "dynamic": True, "multiple_of": 32, "max_side": 128},
}
SIZES = ((131, 203), (40, 50), (64, 96), (9, 300), (1, 1))


def _cases() -> Iterator[tuple[str, Contract, tuple[int, int], float | None]]:
    kinds = list(Kind)
    for number, (name, spec) in enumerate(CONTRACTS.items()):
        for place, size in enumerate(SIZES):
            kind = kinds[(number + place) % 4]
            output = OutputSpec(kind=kind, align_corners=(number + place) % 2 == 1)
            camera = Camera(fx_over_width=0.8, fy_over_height=1.1) if kind is Kind.METRIC_DEPTH else None
            spec = {"height": 64, "width": 96, "camera": camera, **spec}
            contract = Contract(name=name, input=InputSpec(**spec), output=output)
            yield f"{name}-{size[0]}x{size[1]}-{kind}", contract, size, 75.0 if place % 2 else None


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, which the package does not need and a machine may lack."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no Node.js on this machine")
    return found


@pytest.fixture(scope="module")
def in_node(node: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the page's modules make of each case, and what they were given."""
    folder = tmp_path_factory.mktemp("node")
    random = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    given: list[tuple[str, dict[str, Any]]] = []
    for number, (name, contract, size, degrees) in enumerate(_cases()):
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        h, w = contract.prepare(pixels).shape[2:]
        output = random.normal(1, 1, (h, w)).astype(np.float32)
        values = random.normal(1, 1, (50, 70)).astype(np.float32)
        values[0, :3] = np.nan, np.inf, -1
        opaque = np.concatenate([pixels, np.full((*size, 1), 255, np.uint8)], axis=2)
        (folder / f"{number}.rgba").write_bytes(opaque.tobytes())
        (folder / f"{number}.map").write_bytes(output.tobytes())
        (folder / f"{number}.values").write_bytes(values.tobytes())
        numbers = {"height": size[0], "width": size[1], "h": h, "w": w, "degrees": degrees, "lo": 0.2, "hi": 1.9}
        cases.append({"contract": json.loads(contract.model_dump_json()), **numbers})
        given.append((name, {"contract": contract, "pixels": pixels, "output": output, "values": values, **numbers}))
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [node, "--input-type=module", "-e", NODE, str(web.PAGE), str(folder)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    answers = json.loads((folder / "answers.json").read_text())
    return {
        name: {**case, "answer": answer, "folder": folder, "number": number}
        for number, ((name, case), answer) in enumerate(zip(given, answers, strict=True))
    }


CASES = [name for name, *_ in _cases()]


@pytest.mark.parametrize("name", CASES)
def test_the_page_prepares_as_the_contract_does(name: str, in_node: dict[str, dict[str, Any]]) -> None:
    case = in_node[name]
    ours = case["contract"].prepare(case["pixels"])
    theirs = np.fromfile(case["folder"] / f"{case['number']}.input", np.float32)
    assert case["answer"]["size"] == list(ours.shape[2:])
    np.testing.assert_allclose(theirs.reshape(ours.shape), ours, rtol=0, atol=2e-6 * np.abs(ours).max())


@pytest.mark.parametrize("name", CASES)
def test_the_page_restores_as_the_contract_does(name: str, in_node: dict[str, dict[str, Any]]) -> None:
    case = in_node[name]
    size, degrees = (case["height"], case["width"]), case["degrees"]
    camera = Intrinsics.from_fov(degrees, *size) if degrees else None
    ours = case["contract"].restore(case["output"], size, intrinsics=camera).values
    theirs = np.load(case["folder"] / f"{case['number']}.npy")  # as the page's download writes it
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-6 * np.abs(ours).max())


@pytest.mark.parametrize("name", CASES[:4])
def test_the_page_colours_as_we_do(name: str, in_node: dict[str, dict[str, Any]]) -> None:
    case = in_node[name]
    depth = Depth(case["values"], case["contract"].output.kind)
    theirs = np.fromfile(case["folder"] / f"{case['number']}.colors", np.uint8).reshape(depth.shape)
    np.testing.assert_array_equal(theirs, color_indices(depth, case["lo"], case["hi"]))
    answer = case["answer"]
    np.testing.assert_allclose((answer["lo"], answer["hi"]), display_range(depth), rtol=1e-5)


def test_nan_is_told_and_not_shown(node: str) -> None:
    contract = Contract(name="x", input=InputSpec(height=2, width=2), output=OutputSpec(kind=Kind.METRIC_DEPTH))
    script = (
        "const { restore } = await import(`${process.argv[1]}/contract.js`);"
        "const map = { data: new Float32Array([1, NaN, 2, 3]), dims: [1, 1, 2, 2] };"
        "try { restore(JSON.parse(process.argv[2]), map, 4, 4); } catch (error) { console.log(error.message); }"
    )
    command = [node, "--input-type=module", "-e", script, str(web.PAGE), contract.model_dump_json()]
    told = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    assert told.strip() == "The network returned NaN or infinity."
