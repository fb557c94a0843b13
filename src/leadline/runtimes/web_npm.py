"""ONNX Runtime Web from the npm registry: one pinned package, checked, fetched once into the user's cache folder."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING

from leadline.errors import ConfigError, OutputError, UnavailableError
from leadline.output import cache_folder, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "1.30.0"
PACKAGE = "onnxruntime-web"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKED_BYTES = 33_106_585
REGISTRY = "https://registry.npmjs.org/"
TIMEOUT_S = 30.0
# SHA-256 of the files that a page needs: for WebAssembly with threads and SIMD, and for WebGPU.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
LARGEST = 64 << 20  # bytes of one file


def engine_files() -> dict[str, bytes]:
    """The engine's files by name, from the cache folder, or from the npm registry and then kept there.

    Raises:
        UnavailableError: they are not cached and the registry cannot be reached, or gives something else.
        ConfigError: the registry that npm is configured for has no web address.
    """
    folder = cache_folder() / f"{PACKAGE}-{VERSION}"
    cached = {name: data for name in FILES if (data := _cached(folder / name, FILES[name])) is not None}
    if len(cached) == len(FILES):
        return cached
    files = unpack(fetch(registry()))
    with contextlib.suppress(OutputError):  # a cache that cannot be written costs a download each time, no more
        for name, data in files.items():
            write_atomic(folder / name, data)
    return files


def registry() -> str:
    """The npm registry of this user: the environment's, that of npm's own configuration, or the public one.

    Raises:
        ConfigError: it has no http or https address.
    """
    given = next((value for key, value in os.environ.items() if key.lower() == "npm_config_registry" and value), "")
    address = (given or _configured() or REGISTRY).rstrip("/") + "/"
    if not address.startswith(("https://", "http://")):
        mend = "npm config set registry https://registry.npmjs.org/"
        raise ConfigError("not a registry", where=address, why="its address must begin with https://", mend=mend)
    return address


def _configured() -> str:
    npm = shutil.which("npm")
    if npm is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = [npm, "config", "get", "registry"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        answer = asked.stdout.strip()
        return answer if asked.returncode == 0 and answer != "undefined" else ""
    return ""


def fetch(address: str) -> bytes:
    """The package of a registry, its integrity proven.

    Raises:
        UnavailableError: the registry cannot be reached, or what it sends is not the pinned package.
    """
    url = f"{address}{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    mend = f"connect this machine once, or copy {cache_folder()} from one that has exported to the web before"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            packed: bytes = response.read(PACKED_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:  # urllib's faults are OSErrors
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        why = f"{PACKAGE} {VERSION} is not in the cache, and {url} gives: {reason}"
        raise UnavailableError("ONNX Runtime Web is not available", why=why, mend=mend) from error
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        why = f"its SHA-512 is not that of {PACKAGE} {VERSION}"
        mend = "check the registry and what lies between"
        raise UnavailableError("refused what the npm registry sent", where=url, why=why, mend=mend)
    return packed


def unpack(packed: bytes) -> dict[str, bytes]:
    """The named files of a package; its other members are not looked at, and nothing is written.

    Raises:
        UnavailableError: a file is missing, is no plain file, is too large, or differs from what is pinned.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                if name not in FILES or name == member.name or not member.isreg() or member.size > LARGEST:
                    continue
                stream = archive.extractfile(member)
                files[name] = stream.read() if stream is not None else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UnavailableError("unreadable package", where=PACKAGE, why=str(error)) from error
    for name, digest in FILES.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
            raise UnavailableError("unusable package", where=PACKAGE, why=f"{name} is missing or differs")
    return files


def _cached(path: Path, digest: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None
