"""The browser's bundle: the whole page in headless Chromium."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import Browser, Page, Serving
from leadline.bundle import Bundle, load_bundle
from leadline.data.rendered import render
from leadline.depth import Intrinsics
from leadline.image import read_image
from leadline.predictor import Predictor
from leadline.reference import load_exportable
from leadline.runtimes import web
from leadline.runtimes.base import ExportOptions, SessionOptions
from leadline.runtimes.export import export_bundle
from tiny_models import exported

READY = "document.querySelector('#message').innerText === 'Ready.'"
SHOWN = "!document.querySelector('#save-values').disabled"


@pytest.fixture(scope="module")
def site() -> Bundle:
    return load_bundle(exported("cnn", "web", "fp32").folder)


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


def _difference(theirs: np.ndarray, bundle: Bundle, picture: Path) -> float:
    """From our own prediction: the largest, over our largest value, or what the correlation lacks, if that is more."""
    ours = Predictor(web.RUNTIME.open(bundle, SessionOptions())).predict(picture).values
    assert theirs.dtype == np.float32
    assert theirs.shape == ours.shape
    correlation = np.corrcoef(theirs.ravel(), ours.ravel())[0, 1]
    return float(max(np.abs(theirs - ours).max() / np.abs(ours).max(), 1 - correlation))


def test_the_page_predicts_what_we_predict(page: Page, indoor: Bundle, room: Path, tmp_path: Path) -> None:
    assert _difference(_values(page, room, tmp_path / "saved"), indoor, room) < 1e-4
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
    assert _difference(_values(page, room, tmp_path / "saved"), indoor, room) < 1e-4


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

    with Serving(Handler) as plain:
        page = browser.page(plain)
        page.wait(f"crossOriginIsolated && {READY}")
        assert _difference(_values(page, room, tmp_path / "saved"), indoor, room) < 1e-4
        (tmp_path / "index.html").write_text("<p>another project")
        served[0] = str(tmp_path)  # whoever has this address next is left alone
        page.send("Page.navigate", url=f"{plain}/?again")
        page.wait("document.body.innerText === 'another project' && !crossOriginIsolated")
        page.wait("navigator.serviceWorker.getRegistrations().then((all) => all.length === 0)")


def test_a_page_without_isolation_says_one_thread(browser: Browser, indoor: Bundle) -> None:
    with Serving(partial(_Quiet, directory=str(indoor.folder))) as plain:
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

    with Serving(partial(Handler, directory=str(indoor.folder))) as plain:
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
    with Serving(partial(_Quiet, directory=str(bundle.folder))) as plain:
        page = browser.page(plain)
        page.wait(READY)
        assert _difference(_values(page, room, tmp_path / "saved"), bundle, room) < 0.05


@pytest.mark.slow
def test_webgpu_computes_the_same(site: Bundle, room: Path, tmp_path: Path) -> None:
    """On a GPU that Chromium emulates: 25 s a picture for a real network, so a tiny one here."""
    with (
        Browser("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan") as opened,
        Serving(partial(_Quiet, directory=str(site.folder))) as plain,
    ):
        page = opened.page(plain)
        page.wait(READY)
        if "WebGPU" not in page.text("#engine"):
            pytest.skip("this Chromium emulates no GPU")
        page.run("e = document.querySelector('#engine'); e.value = 'webgpu'; e.dispatchEvent(new Event('change'))")
        page.wait("document.querySelector('#runs-on').innerText === 'WebGPU'")
        assert _difference(_values(page, room, tmp_path / "saved"), site, room) < 1e-3
