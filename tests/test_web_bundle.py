"""The browser's bundle: what its folder holds, and ONNX Runtime Web from npm."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from browser import Serving
from leadline.bundle import Bundle, load_bundle
from leadline.colors import palette
from leadline.errors import ConfigError, UnavailableError
from leadline.output import cache_folder
from leadline.runtimes import web, web_npm
from leadline.runtimes.base import ExportOptions, SessionOptions
from tiny_models import cnn, exported


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

    with Serving(Handler) as address:
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
