"""The browser's bundle: the page's own arithmetic in Node, and the whole page in headless Chromium."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Browser, Page
from leadline.bundle import Bundle, load_bundle
from leadline.colors import color_indices, display_range, palette
from leadline.contract import Camera, Contract, InputSpec, OutputSpec
from leadline.data.rendered import render
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, UnavailableError
from leadline.image import read_image
from leadline.output import cache_folder
from leadline.predictor import Predictor
from leadline.reference import load_exportable
from leadline.runtimes import web, web_npm
from leadline.runtimes.base import ExportOptions, SessionOptions
from leadline.runtimes.export import export_bundle
from tiny_models import cnn, exported

READY = "document.querySelector('#message').innerText === 'Ready.'"
SHOWN = "!document.querySelector('#save-values').disabled"

# ---- The page's arithmetic against ours, in Node.

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
def in_node(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the page's modules make of each case, and what they were given."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js on this machine")
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
    command = ["node", "--input-type=module", "-e", NODE, str(web.PAGE), str(folder)]
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


def test_nan_is_told_and_not_shown() -> None:
    if shutil.which("node") is None:
        pytest.skip("no Node.js on this machine")
    contract = Contract(name="x", input=InputSpec(height=2, width=2), output=OutputSpec(kind=Kind.METRIC_DEPTH))
    script = (
        "const { restore } = await import(`${process.argv[1]}/contract.js`);"
        "const map = { data: new Float32Array([1, NaN, 2, 3]), dims: [1, 1, 2, 2] };"
        "try { restore(JSON.parse(process.argv[2]), map, 4, 4); } catch (error) { console.log(error.message); }"
    )
    command = ["node", "--input-type=module", "-e", script, str(web.PAGE), contract.model_dump_json()]
    told = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    assert told.strip() == "The network returned NaN or infinity."


# ---- The bundle.


@pytest.fixture(scope="module")
def site() -> Bundle:
    return load_bundle(exported("cnn", "web", "fp32").folder)


def test_the_folder_is_whole_and_nothing_in_it_is_from_elsewhere(site: Bundle) -> None:
    names = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob("*") if path.is_file()}
    assert names == {*site.files, "manifest.json"}
    assert {"index.html", "serve.py", "model.onnx", "network.json", "ort/LICENSE.txt"} <= names
    assert {f"ort/{name}" for name in web_npm.FILES} <= names
    assert not site.file("ort/ort.wasm.min.mjs").is_symlink()
    network = json.loads(site.file("network.json").read_text())
    assert network["palette"] == palette().tolist()
    assert network["session"] == {}
    total = sum(site.file(name).stat().st_size for name in site.files if name != "contract.json")
    assert site.size_bytes == total > 40e6
    for page in web.PAGE.iterdir():
        assert "//" not in page.read_text().replace("http://localhost:", "").replace("// ", "")
    assert site.details["onnxruntime_web"] == web_npm.VERSION


def test_a_session_says_that_it_is_no_browser(site: Bundle) -> None:
    assert web.NOTE in web.RUNTIME.open(site, SessionOptions()).notes


def test_a_damaged_page_is_refused(site: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(site.folder, tmp_path / "copy"))
    (copy / "app.js").write_text("alert(1)")
    with pytest.raises(Exception, match="differs from the manifest"):
        load_bundle(copy)


# ---- ONNX Runtime Web from npm.


def _packed(*members: tuple[str, bytes, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def small_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """A package of two small files that is pinned instead of the real one, an empty cache, and no npm settings."""
    files = {"a.mjs": b"export {};", "b.wasm": b"\0asm"}
    monkeypatch.setattr(web_npm, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
    return files


def _pin(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    monkeypatch.setattr(web_npm, "INTEGRITY", f"sha512-{digest}")


@pytest.fixture
def npm_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A registry on this machine that answers each path with what the test puts there."""
    answers: dict[str, bytes] = {}

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            data = answers.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with _serving(Handler) as address:
        monkeypatch.setenv("npm_config_registry", f"{address}/npm")
        yield answers


PATH = f"/npm/onnxruntime-web/-/onnxruntime-web-{web_npm.VERSION}.tgz"


def test_the_engine_is_fetched_once(
    small_package: dict[str, bytes], npm_registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(f"package/dist/{name}", data, tarfile.REGTYPE) for name, data in small_package.items()]
    npm_registry[PATH] = _packed(("package/../../evil", b"x", tarfile.REGTYPE), *members)
    _pin(npm_registry[PATH], monkeypatch)
    assert web_npm.engine_files() == small_package
    kept = cache_folder() / f"onnxruntime-web-{web_npm.VERSION}"
    assert sorted(path.name for path in kept.rglob("*")) == ["a.mjs", "b.wasm"]
    packed = npm_registry.pop(PATH)
    assert web_npm.engine_files() == small_package  # without the registry
    (kept / "a.mjs").write_bytes(b"import 'evil'")
    with pytest.raises(UnavailableError, match="Not Found"):
        web_npm.engine_files()
    npm_registry[PATH] = packed
    assert web_npm.engine_files() == small_package  # a damaged cache is mended


@pytest.mark.usefixtures("small_package")
def test_another_package_is_refused(npm_registry: dict[str, bytes]) -> None:
    npm_registry[PATH] = _packed(("package/dist/a.mjs", b"evil", tarfile.REGTYPE))
    with pytest.raises(UnavailableError, match="SHA-512 is not that"):
        web_npm.engine_files()


@pytest.mark.usefixtures("small_package")
@pytest.mark.parametrize(
    "packed",
    [
        _packed(("package/dist/a.mjs", b"export {};", tarfile.REGTYPE), ("package/dist/b.wasm", b"", tarfile.SYMTYPE)),
        _packed(("package/dist/a.mjs", b"export {};", tarfile.REGTYPE), ("package/dist/b.wasm", b"", tarfile.LNKTYPE)),
        _packed(("package/dist/a.mjs", b"export {};", tarfile.REGTYPE), ("b.wasm", b"\0asm", tarfile.REGTYPE)),
        _packed(("package/dist/a.mjs", b"other", tarfile.REGTYPE), ("package/dist/b.wasm", b"\0asm", tarfile.REGTYPE)),
        gzip.compress(b"no archive"),
        b"no gzip",
        _packed(("package/dist/a.mjs", b"export {};" * 9999, tarfile.REGTYPE))[:60],
    ],
    ids=["symlink", "hardlink", "other-folder", "other-bytes", "no-tar", "no-gzip", "cut"],
)
def test_a_hostile_package_is_not_unpacked(packed: bytes) -> None:
    with pytest.raises(UnavailableError, match="package"):
        web_npm.unpack(packed)


@pytest.mark.usefixtures("small_package")
def test_without_network_and_cache_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(UnavailableError, match="Connect this machine once"):
        web.RUNTIME.export(cnn(), ExportOptions(), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.onnx"))  # before any work
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(ConfigError, match="https"):
        web_npm.engine_files()


# ---- The page in a browser.


class _serving:
    """A handler of `http.server` on a free port of this machine; gives the address."""

    def __init__(self, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def indoor(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged metric network: real weights, metres and a camera."""
    folder = tmp_path_factory.mktemp("web") / "site"
    return export_bundle(load_exportable("leadline-s-indoor"), "web", ExportOptions(size=(96, 128)), folder)


@pytest.fixture(scope="module")
def address(indoor: Bundle) -> Iterator[str]:
    """Of the page as its own `serve.py` serves it."""
    server = subprocess.Popen([sys.executable, indoor.file("serve.py"), "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().split()[0].replace("localhost", "127.0.0.1")
    server.terminate()
    server.wait(10)
    server.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Page:
    opened = browser.page(address)
    opened.wait(READY)
    return opened


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "living room ü.png"
    Image.fromarray(render(3, height=150, width=200).image).save(path)
    return path


def _values(page: Page, picture: Path, folder: Path) -> np.ndarray:
    """What the page lets the user save as raw values of a picture."""
    folder.mkdir()
    page.save_downloads(folder)
    page.run("document.querySelector('#ms-network').innerText = ''")
    page.choose("#file", picture)
    page.wait("document.querySelector('#ms-network').innerText")
    assert page.text("#message") == picture.name
    page.run("document.querySelector('#save-values').click()")
    saved = folder / f"{picture.stem}.npy"
    for _ in range(200):
        if saved.exists() and not list(folder.glob("*.crdownload")):
            return np.asarray(np.load(saved))
        threading.Event().wait(0.05)
    raise TimeoutError(f"no {saved.name} among {list(folder.iterdir())}")


def _agree(theirs: np.ndarray, bundle: Bundle, picture: Path, limit: float) -> None:
    ours = Predictor(web.RUNTIME.open(bundle, SessionOptions())).predict(picture).values
    assert theirs.dtype == np.float32
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() / np.abs(ours).max() < limit
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 1 - limit


def test_the_page_predicts_what_we_predict(page: Page, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    _agree(_values(page, room, tmp_path / "saved"), indoor, room, 1e-4)
    assert page.run("crossOriginIsolated") is True
    assert page.text("#about") == "depth in metres · fp32"
    assert page.text("#far").endswith(" m")
    assert page.text("#size").startswith("96 × 128")
    assert page.text("#ms-network").endswith(" ms")
    assert page.faults() == []
    assert all(url.startswith((page.run("origin"), "blob:", "data:")) for url in page.requests())


def test_values_are_read_by_pointer_and_by_keys(page: Page, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    values = _values(page, room, tmp_path / "saved")
    page.run("document.querySelector('#depth').focus()")
    page.press("ArrowRight")  # begins in the middle
    page.press("ArrowUp", shift=True)
    assert page.text("#probe") == f"{values[65, 101]:.2f} m at column 101, row 65"
    x, y = page.run(
        "(() => { const b = document.querySelector('#depth').getBoundingClientRect();"
        " return [b.left + b.width * 0.25, b.top + b.height * 0.5]; })()"
    )
    page.point(x, y)
    page.wait("document.querySelector('#probe').innerText.endsWith('at column 50, row 75')")


def test_a_field_of_view_corrects_metres(page: Page, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    before = _values(page, room, tmp_path / "before")
    page.run("angle = document.querySelector('#angle'); angle.value = 40; angle.dispatchEvent(new Event('change'))")
    after = _values(page, room, tmp_path / "after")
    page.run("angle.value = ''; angle.dispatchEvent(new Event('change'))")
    ratio = indoor.contract.focal_ratio((150, 200), Intrinsics.from_fov(40, 150, 200))
    np.testing.assert_allclose(after, before * ratio, rtol=1e-5)


def test_bad_files_get_words_and_the_page_lives(page: Page, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    bad = {
        "notes.txt": (b"Dear diary\n", "no picture or video"),
        "empty.png": (b"", "is empty"),
        "torn.png": (room.read_bytes()[: room.stat().st_size // 2], "it is damaged"),
        "head.png": (room.read_bytes()[:20], "no picture or video"),
        "huge.png": (_huge_png(), "is too large: 20000 x 20000"),
        "broken.mp4": (b"\0\0\0\x18ftypmp42" + bytes(50), "no picture or video"),
    }
    for name, (data, words) in bad.items():
        (tmp_path / name).write_bytes(data)
        page.choose("#file", tmp_path / name)
        page.wait(f"document.querySelector('#message').innerText.includes({json.dumps(words)})")
        assert page.text("#message").startswith(name)
        assert page.run("document.querySelector('#message').getAttribute('role')") == "alert"
    _agree(_values(page, room, tmp_path / "saved"), indoor, room, 1e-4)


def _huge_png() -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_turned_and_a_clear_picture_are_read_as_we_read_them(
    page: Page, indoor: Bundle, room: Path, tmp_path: Path
) -> None:
    """EXIF orientation once, transparency over white."""
    picture = Image.fromarray(read_image(room))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda level: 255 if level > 99 else 0))
    clear.save(tmp_path / "clear.png")
    for name, width in (("turned.png", 150), ("clear.png", 200)):
        page.save_downloads(tmp_path)
        page.choose("#file", tmp_path / name)
        page.wait(f"document.querySelector('#message').innerText === '{name}'")
        page.wait(f"document.querySelector('#depth').width === {width}")
        ours = Predictor(web.RUNTIME.open(indoor, SessionOptions())).predict(tmp_path / name).values
        row, column = 60, 70
        page.run("document.querySelector('#depth').focus()")
        page.wait(f"{SHOWN}")
        seen = _probe(page, column, row)
        assert seen == pytest.approx(ours[row, column], abs=0.0051)


def _probe(page: Page, column: int, row: int) -> float:
    x, y = page.run(
        "(() => { const c = document.querySelector('#depth'); const b = c.getBoundingClientRect();"
        " const s = Math.min(b.width / c.width, b.height / c.height);"
        f" return [b.left + (b.width - c.width * s) / 2 + s * {column + 0.5},"
        f" b.top + (b.height - c.height * s) / 2 + s * {row + 0.5}]; }})()"
    )
    page.point(x, y)
    page.wait(f"document.querySelector('#probe').innerText.endsWith('at column {column}, row {row}')")
    return float(page.text("#probe").split(" m ")[0])


@pytest.mark.parametrize("codec", ["libvpx", "libx264"])
def test_a_video_runs_live(page: Page, codec: str, tmp_path: Path) -> None:
    path = tmp_path / ("film.webm" if codec == "libvpx" else "film.mp4")
    _film(path, codec)
    page.run("document.querySelector('#numbers').dataset.seen = document.querySelector('#rate').innerText")
    page.choose("#file", path)
    page.wait(f"document.querySelector('#message').innerText === '{path.name}'")
    page.wait("Number(document.querySelector('#rate').innerText) > 0")
    page.wait("document.querySelector('#depth').width === 128")
    page.wait("document.querySelector('#play').innerText === 'Play again'")
    page.wait("Number(document.querySelector('#seek').value) > 0.5")
    assert not page.run("document.querySelector('#message').classList.contains('fault')")


def _film(path: Path, codec: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(8):
            frame = render(4, height=96, width=128).image.copy()
            frame[:, : 4 + 8 * number] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_the_camera_runs_live_and_lets_go(page: Page) -> None:
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
    page.wait("document.querySelector('#message').innerText === 'Camera'")
    page.wait("document.querySelector('#depth').width === 640 && Number(document.querySelector('#rate').innerText) > 0")
    page.run("document.querySelector('#camera').click()")
    assert page.run("document.querySelector('#camera').getAttribute('aria-pressed')") == "false"


def test_the_page_fits_wide_and_narrow_windows(page: Page, room: Path, tmp_path: Path) -> None:
    _values(page, room, tmp_path / "saved")
    for view in ("slider", "beside"):
        choose = f"v = document.querySelector('#view'); v.value = '{view}'; v.dispatchEvent(new Event('change'))"
        page.run(choose)
        for width in (1280, 390):
            page.resize(width, 844)
            page.wait(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
            boxes = page.run(
                "[...document.querySelectorAll('#picture, #depth')].map((c) => c.getBoundingClientRect())"
                ".map((b) => [b.left, b.top, b.right, b.bottom])"
            )
            assert all(left >= 0 and right <= width for left, _, right, _ in boxes)
            assert (boxes[0] == boxes[1]) == (view == "slider")
    page.resize(1280, 800)


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(14):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
    assert {"file", "camera", "depth", "view", "engine", "angle", "save-values", "save-colors"} <= set(reached)


def test_a_plain_server_works_and_gets_isolated(browser: Browser, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    """`python -m http.server` sends no headers: the service worker adds them, and the page loads once more."""
    served = [str(indoor.folder)]

    class Handler(_Quiet):
        def translate_path(self, path: str) -> str:
            self.directory = served[0]
            return super().translate_path(path)

    with _serving(Handler) as plain:
        page = browser.page(plain)
        page.wait(f"crossOriginIsolated && {READY}")
        _agree(_values(page, room, tmp_path / "saved"), indoor, room, 1e-4)
        (tmp_path / "index.html").write_text("<p>another project")
        served[0] = str(tmp_path)  # whoever has this address next is left alone
        page.send("Page.navigate", url=f"{plain}/?again")
        page.wait("document.body.innerText === 'another project' && !crossOriginIsolated")
        page.wait("navigator.serviceWorker.getRegistrations().then((all) => all.length === 0)")


def test_a_page_without_isolation_says_one_thread(browser: Browser, indoor: Bundle) -> None:
    with _serving(partial(_Quiet, directory=str(indoor.folder))) as plain:
        page = browser.page("about:blank")
        script = "Object.defineProperty(Navigator.prototype, 'serviceWorker', { get: () => undefined })"
        page.send("Page.addScriptToEvaluateOnNewDocument", source=script)
        page.send("Page.navigate", url=plain)
        page.wait(READY)
        assert page.run("crossOriginIsolated") is False
        assert page.text("#note").startswith("One thread only")
        assert page.run("document.querySelector('#threads').disabled") is True
        assert page.text("#runs-on") == "WebAssembly, 1 thread"


def test_an_incomplete_copy_of_the_folder_says_what_is_missing(browser: Browser, indoor: Bundle) -> None:
    class Handler(_Quiet):
        def translate_path(self, path: str) -> str:
            return super().translate_path(path.replace("model.onnx", "gone"))

    with _serving(partial(Handler, directory=str(indoor.folder))) as plain:
        page = browser.page(plain)
        page.wait("document.querySelector('#message').innerText.includes('no model.onnx (status 404)')")
        assert page.run("document.querySelector('#message').getAttribute('role')") == "alert"


@pytest.mark.parametrize(
    ("name", "precision"), [("cnn", "fp16"), ("cnn", "int8-static"), ("cnn", "int8-weights"), ("vit", "int8-dynamic")]
)
def test_each_precision_runs_in_the_browser(
    browser: Browser, name: str, precision: str, room: Path, tmp_path: Path
) -> None:
    bundle = exported(name, "web", precision)
    with _serving(partial(_Quiet, directory=str(bundle.folder))) as plain:
        page = browser.page(plain)
        page.wait(READY)
        _agree(_values(page, room, tmp_path / "saved"), bundle, room, 0.05)


@pytest.mark.slow
def test_webgpu_computes_the_same(site: Bundle, room: Path, tmp_path: Path) -> None:
    """On a GPU that Chromium emulates: 25 s a picture for a real network, so a tiny one here."""
    with (
        Browser("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan") as opened,
        _serving(partial(_Quiet, directory=str(site.folder))) as plain,
    ):
        page = opened.page(plain)
        page.wait(READY)
        if "WebGPU" not in page.text("#engine"):
            pytest.skip("this Chromium emulates no GPU")
        page.run("e = document.querySelector('#engine'); e.value = 'webgpu'; e.dispatchEvent(new Event('change'))")
        page.wait("document.querySelector('#runs-on').innerText === 'WebGPU'")
        _agree(_values(page, room, tmp_path / "saved"), site, room, 1e-3)
