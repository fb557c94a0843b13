"""The server's page in headless Chromium: pictures, films, the webcam, values, views and downloads, by real clicks."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import Browser, Page
from leadline.colors import color_indices, palette
from leadline.live.server import pages
from leadline.live.server.guard import Access
from leadline.live.server.limits import Limits
from leadline.predictor import load
from serving import Running, checkpoint, jpeg, opened, running

READY = "document.querySelector('#model').options.length > 0"
SHOWN = "!document.querySelector('#settings').hidden"
SIZES = ((1280, 800), (390, 844))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(opened([f"tiny={folder}", f"fixed={folder}"]), Limits(upload_bytes=1 << 20, pixels=4_000_000)) as here:
        yield here


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser("--enable-unsafe-swiftshader") as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    browser.events.clear()
    found = browser.page(server.address)
    found.wait(READY)
    yield found
    assert found.faults() == []
    assert all(url.startswith((server.address, "blob:", "data:", "about:")) for url in found.requests())
    found.send("Page.close")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a b ü.jpg"
    path.write_bytes(jpeg(90, 120))
    return path


def centre(page: Page, selector: str) -> tuple[float, float]:
    box = page.run(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
    )
    return box[0], box[1]


def mouse(page: Page, kind: str, x: float, y: float, buttons: int = 0) -> None:
    page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)


def click(page: Page, selector: str) -> None:
    x, y = centre(page, selector)
    mouse(page, "mousePressed", x, y, 1)
    mouse(page, "mouseReleased", x, y)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    mouse(page, "mousePressed", *start, 1)
    for step in (0.5, 1.0):
        x, y = (a + step * (b - a) for a, b in zip(start, end, strict=True))
        mouse(page, "mouseMoved", x, y, 1)
    mouse(page, "mouseReleased", *end)


def choose(page: Page, selector: str, value: str) -> None:
    page.run(
        f"(() => {{ const e = document.querySelector({selector!r}); e.value = {value!r};"
        " e.dispatchEvent(new Event('change')); })()"
    )


def open_picture(page: Page, path: Path) -> None:
    page.choose("#file", path)
    page.wait(f"{SHOWN} && document.querySelector('#message').innerText === {path.name!r}")


def downloaded(folder: Path, name: str) -> Path:
    until = time.monotonic() + 30
    while not (folder / name).is_file():
        assert time.monotonic() < until, sorted(path.name for path in folder.iterdir())
        time.sleep(0.05)
    return folder / name


def test_a_picture_its_values_its_colours_and_what_is_saved(
    page: Page, picture: Path, folder: Path, tmp_path: Path
) -> None:
    with load(folder) as predictor:
        truth = predictor.predict(picture)
    open_picture(page, picture)
    x, y = centre(page, "#depth")
    page.point(x, y)
    value = truth.values[45, 60]
    assert page.text("#probe").startswith(f"{value:.2f} m at column 60, row 45")
    assert page.text("#bubble") == f"{value:.2f} m"
    page.run("document.querySelector('#depth').focus()")
    page.press("ArrowLeft")
    page.press("ArrowDown", shift=True)
    assert page.text("#probe").startswith(f"{truth.values[55, 59]:.2f} m at column 59, row 55")
    assert "metres" in page.text("#about")
    assert float(page.text("#ms-network").split()[0]) > 0
    trip, of_server = (float(page.text(name).split()[0]) for name in ("#ms-trip", "#ms-server"))
    assert trip >= of_server > 0

    page.save_downloads(tmp_path)
    click(page, "#save-npy")
    values = np.load(downloaded(tmp_path, "a b ü.npy"), allow_pickle=False)
    np.testing.assert_array_equal(values, truth.values)
    click(page, "#save-png16")
    with Image.open(downloaded(tmp_path, "a b ü_depth.png")) as image:
        codes, note = np.array(image), json.loads(image.text["Depth"])
    np.testing.assert_allclose(codes * note["scale"] + note["offset"], truth.values, atol=0.51 * note["scale"])
    page.wait("document.querySelector('#message').innerText.startsWith('Saved metres: value = ')")
    click(page, "#save-color")
    with Image.open(downloaded(tmp_path, "a b ü_color.png")) as image:
        colours = np.array(image.convert("RGB"))
    lo, hi = np.percentile(truth.values, (2, 98))
    expected = palette()[color_indices(truth, float(lo), float(hi))]
    assert np.abs(colours.astype(int) - expected).max() <= 3  # one step of the palette


def test_the_views(page: Page, picture: Path) -> None:
    open_picture(page, picture)
    click(page, "label[for=view-slider]")
    assert page.run("document.querySelector('#stage').dataset.view") == "slider"
    x, y = centre(page, "#depth")
    drag(page, (x, y), (x + 60, y))
    share = float(page.run("document.querySelector('#split').value"))
    assert share > 52
    page.run("document.querySelector('#split').focus()")
    page.press("ArrowLeft")
    # Tab order and keys alone reach every view
    page.run("document.querySelector('#view-slider').focus()")
    click(page, "label[for=view-space]")
    page.wait("Number(document.querySelector('#space').dataset.points) > 1000")
    assert "In proportion for a field of view of 60°, which is a guess" in page.text("#space-note")

    def seen() -> bytes:
        time.sleep(0.3)
        x, y = centre(page, "#space")
        box = {"x": x - 150, "y": y - 100, "width": 300, "height": 200, "scale": 1}
        return str(page.send("Page.captureScreenshot", format="png", clip=box)["data"]).encode()

    first = seen()
    assert len(first) > 5000  # it is not empty
    x, y = centre(page, "#space")
    drag(page, (x, y), (x + 80, y + 10))
    turned = seen()
    assert turned != first
    page.run("document.querySelector('#space').focus()")
    page.press("ArrowUp")
    by_key = seen()
    assert by_key != turned
    page.press("+")
    assert seen() != by_key
    page.press("0")
    assert seen() == first


def test_a_film_and_the_webcam(page: Page, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    film = tmp_path / "film.webm"
    with av.open(str(film), "w") as out:
        stream = out.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for seed in range(12):
            pixels = np.array(Image.open(io.BytesIO(jpeg(64, 96, seed=seed))))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    page.choose("#file", film)
    page.wait("document.querySelector('#rate').innerText !== '–'")
    page.wait("document.querySelector('#play').innerText === 'Play again'")
    assert page.text("#message") == "film.webm"
    page.run("document.querySelector('#depth').focus()")
    page.press("ArrowUp")
    assert " m at column " in page.text("#probe")
    page.save_downloads(tmp_path)
    click(page, "#save-npy")
    assert np.load(downloaded(tmp_path, "film.npy")).shape == (64, 96)

    click(page, "#camera")
    page.wait("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
    page.wait(
        "document.querySelector('#rate').innerText !== '–' && document.querySelector('#message').innerText === 'Webcam'"
    )
    pytest.importorskip("cv2")
    click(page, "#steady")
    page.wait("document.querySelector('#rate').innerText === '–' || true")
    page.wait("parseFloat(document.querySelector('#rate').innerText) > 0")
    click(page, "#camera")
    assert page.run("document.querySelector('#camera').getAttribute('aria-pressed')") == "false"


def test_models_change_and_faults_are_told_in_words(page: Page, picture: Path, tmp_path: Path) -> None:
    open_picture(page, picture)
    choose(page, "#model", "fixed")
    page.wait("performance.getEntriesByType('resource').some((each) => each.name.includes('model=fixed'))")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    page.choose("#file", bad)
    page.wait("document.querySelector('#message').className === 'fault'")
    assert "bad.jpg" in page.text("#message")
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 1 << 20
    page.choose("#file", large)
    page.wait("document.querySelector('#message').innerText.includes('sent smaller')")


def test_a_token_is_asked_for_or_comes_behind_the_address(browser: Browser, folder: Path, picture: Path) -> None:
    with running(opened([f"tiny={folder}"]), access=Access(token="correct-horse")) as here:
        page = browser.page(f"{here.address}#token=Y29ycmVjdC1ob3JzZQ")
        page.wait(READY)
        assert page.run("location.href") == here.address  # the token is gone from the address
        open_picture(page, picture)
        page.run("sessionStorage.clear()")
        page.send("Page.navigate", url=f"{here.address}?again")
        page.wait("!document.querySelector('#ask-token').hidden")
        page.run("document.querySelector('#token').value = 'correct-horse'")
        click(page, "#ask-token button")
        page.wait(READY)
        page.send("Page.close")
        browser.events.clear()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_wide_and_narrow_windows_in_both_themes(
    browser: Browser, server: Running, picture: Path, size: tuple[int, int], theme: str
) -> None:
    browser.events.clear()
    page = browser.page(server.address, size)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    page.wait(READY)
    open_picture(page, picture)
    for view in ("beside", "slider", "space"):
        click(page, f"label[for=view-{view}]")
        time.sleep(0.1)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        small = page.run(
            "[...document.querySelectorAll('button, select, .button, #views label')].filter((each) =>"
            " each.offsetParent && each.getBoundingClientRect().height < 38).map((each) => each.id || each.innerText)"
        )
        assert small == []
    ratio = page.run(CONTRAST)
    assert ratio >= 4.5  # WCAG 2.2, 1.4.3
    assert page.faults() == []
    page.send("Page.close")


CONTRAST = """(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll('h1, #about, label, #message, #probe, dt, dd')]
    .filter((e) => e.offsetParent);
  return Math.min(...texts.filter((e) => !e.matches('.primary, #views label')).map((e) => {
    const text = light(getComputedStyle(e).color);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  }));
})()"""


NODE = """
const [folder] = process.argv.slice(1);
const { colourMaps } = await import(`${folder}/maps.js`);
const { distances } = await import(`${folder}/relief.js`);
const own = JSON.parse((await import('node:fs')).readFileSync(`${folder}/palette.json`));
const far = (kind, values) => [...distances(Float32Array.from(values), kind, 0, 1)].map((v) => (v > 0 ? v : null));
console.log(JSON.stringify({
  maps: colourMaps(own),
  metric: far('metric_depth', [1, 2, 3, 0, NaN, 100]),
  scaled: far('scaled_disparity', [1, 0.5, 0.25]),
  relative: far('relative_disparity', [0, 0.5, 1]),
}));
"""


@pytest.fixture(scope="module")
def in_node(tmp_path_factory: pytest.TempPathFactory) -> dict:
    if shutil.which("node") is None:
        pytest.skip("no Node.js on this machine")
    folder = tmp_path_factory.mktemp("page")
    for name, data in pages.Pages().files.items():
        (folder / name).write_bytes(data)
    (folder / "package.json").write_text('{"type": "module"}')
    command = ["node", "--input-type=module", "-e", NODE, str(folder)]
    return json.loads(subprocess.run(command, check=True, timeout=60, capture_output=True).stdout)


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB, written apart from the page's OKLab."""
    linear = np.where(colours <= 10.31475, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126729, 0.7151522, 0.0721750]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


@pytest.mark.parametrize("name", ["Leadline", "Blue to yellow", "Grey"])
def test_colour_maps_rise_in_lightness_also_for_who_sees_no_red_or_green(in_node: dict, name: str) -> None:
    colours = np.array(in_node["maps"][name], float)
    assert colours.shape == (256, 3)
    assert (colours[0] == 0).all()
    steps = np.diff(lightness(colours[1:]))
    assert steps.min() > -0.35  # rounding to 8 bits
    assert lightness(colours[1:])[-1] - lightness(colours[1:])[0] > 60
    # Viénot, Brettel and Mollon 1999: what a dichromat without red-sensitive cones sees, in linear RGB
    linear = (colours[1:] / 255) ** 2.2
    seen = linear @ np.array([[0.11238, 0.11238, 0.00401], [0.88762, 0.88762, -0.00401], [0, 0, 1]])
    blurred = np.convolve(seen @ [0.2126, 0.7152, 0.0722], np.ones(9) / 9, "valid")
    assert (np.diff(blurred) > 0).all()


def test_distances_of_the_points(in_node: dict) -> None:
    np.testing.assert_allclose([v for v in in_node["metric"] if v], [1 / 3, 2 / 3, 1, 6], rtol=1e-6)  # 100 m is cut
    assert in_node["metric"][3:5] == [None, None]
    np.testing.assert_allclose(in_node["scaled"], [0.5, 1, 2], rtol=1e-6)
    assert in_node["relative"][0] > in_node["relative"][1] > in_node["relative"][2] > 0


def test_pages_are_in_memory_and_have_a_policy(server: Running) -> None:
    answer = server.client.get("")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
    assert "http" not in answer.text.replace("http-equiv", "")  # nothing from a network
