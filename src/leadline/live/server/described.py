"""What OpenAPI says of the server beyond what FastAPI finds by itself."""

from __future__ import annotations

from typing import Any

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What is wrong and what mends it."}},
    "required": ["error"],
    "additionalProperties": False,
}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: _json("No valid HTTP request", _ERROR),
    401: _json("The token is missing or wrong", _ERROR),
    403: _json("A foreign Host or Origin", _ERROR),
    422: _json("A parameter or a picture that cannot be read, or has too many pixels", _ERROR),
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: _json("No such model or runtime", _ERROR),
    408: _json("The upload was too slow", _ERROR),
    413: _json("The upload is too large", _ERROR),
    415: _json("No picture", _ERROR),
    500: _json("A fault of the server", _ERROR),
    503: {
        **_json("Too many requests wait", _ERROR),
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"picture": {"type": "string", "format": "binary"}},
        "required": ["picture"],
    }
}
PICTURE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The picture itself (JPEG, PNG, WebP, BMP, TIFF, GIF, PPM), or a form with it as a file.",
        "content": {
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "image/webp": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": _FORM,
        },
    }
}
_NUMBER = {"type": ["number", "null"]}
STATISTICS = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["metric_depth", "relative_depth", "relative_disparity", "scaled_disparity"]},
        "unit": {"enum": ["m", "none"]},
        "model": {"type": "string"},
        "runtime": {"type": "string"},
        "camera": {"enum": ["given", "exif", "assumed", "unknown"]},
        "height": {"type": "integer"},
        "width": {"type": "integer"},
        "valid_share": {"type": "number"},
        "minimum": _NUMBER,
        "maximum": _NUMBER,
        "mean": _NUMBER,
        "percentiles": {"type": "object", "additionalProperties": _NUMBER},
        "degenerate": {"type": "boolean"},
    },
    "required": ["kind", "unit", "model", "runtime", "height", "width", "minimum", "maximum"],
}
_HEADERS = {
    "Depth-Kind": "What a value means.",
    "Depth-Unit": "`m` or `none`.",
    "Depth-Model": "Name of the model.",
    "Depth-Runtime": "Engine that ran it.",
    "Depth-Camera": "`given`, `exif`, `assumed` (that of training) or `unknown`.",
    "Depth-Fov": "Horizontal field of view of that camera, degrees.",
    "Depth-Scale": "png16: value = scale * code + offset.",
    "Depth-Offset": "png16.",
    "Depth-Invalid": "png16: the code of pixels without a value.",
    "Depth-Low": "color: value of the lower end of the colour scale.",
    "Depth-High": "color: value of its upper end.",
    "Depth-Notice": "What the reader of the picture decided.",
    "Server-Timing": "Milliseconds before, waiting for, in and after the network.",
}


def depth_answer() -> dict[int | str, dict[str, Any]]:
    """The answers of /v1/depth."""
    found = {
        "description": "Depth: raw float32 values (NPY) or codes (16-bit PNG), colours (PNG), or statistics (JSON).",
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
        "content": {
            "image/png": _BINARY,
            "application/x-npy": _BINARY,
            "application/json": {"schema": STATISTICS},
        },
    }
    return {200: found, **REFUSALS}


MODELS: dict[int | str, dict[str, Any]] = {
    200: _json(
        "Models",
        {
            "type": "object",
            "properties": {
                "default": {"type": "string"},
                "models": {"type": "array", "items": {"type": "object"}},
                "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
            },
            "required": ["default", "models", "limits"],
        },
    )
}
READY: dict[int | str, dict[str, Any]] = {
    200: _json("State", {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]})
}
TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
