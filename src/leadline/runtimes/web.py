"""The browser: a static folder that runs the network on pictures, videos and the camera with ONNX Runtime Web."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from leadline.colors import palette
from leadline.errors import BundleError
from leadline.runtimes import onnx_runtime, web_npm
from leadline.runtimes.base import (
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Runtime,
    Session,
    SessionOptions,
    bundle_contract,
    bundle_of,
    needs_calibration,
    refuse_precision,
)

if TYPE_CHECKING:
    from leadline.bundle import Bundle

PAGE = Path(__file__).parent / "web_page"
ENGINE, NETWORK = "ort", "network.json"
LARGEST_MODEL = 2_000_000_000  # bytes: browsers hold a file in one buffer of less than 2 GiB
NOTE = "computed here with ONNX Runtime; browsers run the same file with ONNX Runtime Web"
LICENCE = """\
ONNX Runtime Web {version}, from the npm package onnxruntime-web. Its files here are unchanged.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


class Web(Runtime):
    """ONNX Runtime Web in a page, which is its own example: WebAssembly with threads and SIMD, or WebGPU."""

    name: ClassVar[str] = "web"
    precisions: ClassVar[tuple[Precision, ...]] = onnx_runtime.OnnxRuntime.precisions
    dynamic: ClassVar[bool] = True
    packages: ClassVar[str] = "onnxruntime"
    in_process: ClassVar[bool] = False  # a browser does
    by_name_only: ClassVar[str] = "its files run in a browser"

    def availability(self) -> Availability:
        """Whether ONNX Runtime is installed, which writes and checks the network; the page's own comes from npm."""
        state = onnx_runtime.RUNTIME.availability()
        return Availability(True, version=web_npm.VERSION) if state.available else state

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write the page, the engine, the network and its contract.

        Raises:
            UnavailableError: ONNX Runtime Web is neither cached nor to be had from the npm registry, or the network
                cannot be exported.
            ConfigError: as of ONNX Runtime.
            BundleError: the network is too large for a browser.
        """
        refuse_precision(self, options)
        needs_calibration(options, source)
        engine = web_npm.engine_files()  # before the work that would be lost without it
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        details = onnx_runtime.write_onnx(source, options, contract, out / onnx_runtime.FILE)
        size = (out / onnx_runtime.FILE).stat().st_size
        if size > LARGEST_MODEL:
            mend = "export int8-weights, or a smaller network"
            raise BundleError("too large for a browser", where=source.name, why=f"{size} bytes", mend=mend)
        for file in sorted(PAGE.iterdir()):
            (out / file.name).write_bytes(file.read_bytes())
        (out / ENGINE).mkdir()
        for name, data in engine.items():
            (out / ENGINE / name).write_bytes(data)
        (out / ENGINE / "LICENSE.txt").write_text(LICENCE.format(version=web_npm.VERSION), encoding="utf-8")
        network = {
            "file": onnx_runtime.FILE,
            "precision": str(options.precision),
            "session": _session_settings(options.precision),
            "palette": palette().tolist(),
        }
        (out / NETWORK).write_text(json.dumps(network), encoding="utf-8")
        return bundle_of(self, source, options, contract, out, details | {"onnxruntime_web": web_npm.VERSION})

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """The page's network in ONNX Runtime: the same file, computed outside the browser."""
        session = onnx_runtime.RUNTIME.open(bundle, options)
        session.notes.append(NOTE)
        return session


def _session_settings(precision: Precision) -> dict[str, dict[str, str]]:
    """ONNX Runtime's settings by name: INT8 weights become float once, not in each run."""
    return {"session": {"disable_quant_qdq": "1"}} if precision is Precision.INT8_WEIGHTS else {}


RUNTIME = Web()
