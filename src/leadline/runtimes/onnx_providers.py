"""ONNX Runtime's execution providers by name: what each needs, how it is set up, and which nodes it left to the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from leadline.runtimes.base import SessionOptions

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Args:
        engine: its name in ONNX Runtime.
        brings: the package or build that has it.
        compiles: whether it takes parts of the graph away to compile them; what it computes in is not readable then.
    """

    engine: str
    brings: str
    compiles: bool = False


PROVIDERS = {
    "cpu": Provider(CPU, "every onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu and TensorRT's libraries", compiles=True),
    "coreml": Provider("CoreMLExecutionProvider", "onnxruntime for macOS", compiles=True),
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml (Windows)"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino", compiles=True),
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn (Qualcomm)", compiles=True),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx (AMD)", compiles=True),
    "xnnpack": Provider("XnnpackExecutionProvider", "a build with --use_xnnpack (or the Android or iOS package)"),
}


def named_provider(device: str) -> tuple[Provider, int]:
    """The provider that a device means, and the number of its accelerator: `cuda:1` is the second.

    Args:
        device: one of PROVIDERS, or ONNX Runtime's own name, with `:number` behind it where there are several.

    Raises:
        ConfigError: there is no such provider, or this build of ONNX Runtime lacks it.
    """
    import onnxruntime

    name, _, number = device.partition(":")
    by_engine = {each.engine.lower(): each for each in PROVIDERS.values()}
    by_engine |= {each.lower(): Provider(each, "another build") for each in _all(onnxruntime) - set(by_engine)}
    provider = PROVIDERS.get(name.lower()) or by_engine.get(name.lower())
    here = onnxruntime.get_available_providers()
    why = f"this build has {', '.join(short(each) for each in here)}"
    if provider is None or (number and not number.isdigit()):
        raise ConfigError("onnxruntime cannot use the device", where=device, why=why, mend=closest(name, PROVIDERS))
    if provider.engine not in here:
        mend = f"install {provider.brings} in place of onnxruntime, or use cpu"
        raise ConfigError("onnxruntime cannot use the device", where=device, why=why, mend=mend)
    return provider, int(number or 0)


def _all(onnxruntime: Any) -> set[str]:
    known = {each.engine for each in PROVIDERS.values()}
    return {each for each in onnxruntime.get_all_providers() if each not in known}


def short(engine: str) -> str:
    """The name that users give a provider."""
    return next((name for name, each in PROVIDERS.items() if each.engine == engine), engine)


def provider_options(provider: Provider, number: int, options: SessionOptions) -> dict[str, str]:
    """What a provider is told: the arithmetic of the file and nothing narrower, and the threads.

    Args:
        provider: from `named_provider`.
        number: of the accelerator.
        options: of the session.
    """
    threads = options.threads or os.cpu_count() or 1
    return {
        "CUDAExecutionProvider": {"device_id": str(number), "use_tf32": "0"},
        "TensorrtExecutionProvider": {"device_id": str(number)},
        "MIGraphXExecutionProvider": {"device_id": str(number)},
        "DmlExecutionProvider": {"device_id": str(number)},
        "CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
        "OpenVINOExecutionProvider": {"precision": "ACCURACY", "num_of_threads": str(threads)},
        "XnnpackExecutionProvider": {"intra_op_num_threads": str(threads)},
    }.get(provider.engine, {})


def prepare_settings(settings: Any, provider: Provider) -> None:
    """Bring an `onnxruntime.SessionOptions` to what a provider asks of the session around it."""
    if provider.engine == CPU:
        return
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider.engine == PROVIDERS["xnnpack"].engine:  # it has threads of its own, and two pools hinder each other
        settings.intra_op_num_threads = 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider.engine == PROVIDERS["directml"].engine:  # it plans its memory itself
        settings.enable_mem_pattern = False


def check_started(session: Any, provider: Provider, device: str) -> None:
    """Refuse a session that went on without its provider, as ONNX Runtime does where a driver or library is missing.

    Raises:
        ConfigError: the provider is in this build, but did not start.
    """
    if provider.engine not in session.get_providers():
        why = "its driver or libraries are missing or of another version"
        raise ConfigError("onnxruntime could not start the provider", where=device, why=why, mend="use cpu")


def fallback_notes(session: Any, provider: Provider) -> list[str]:
    """Which nodes the provider left to the CPU, as ONNX Runtime recorded; empty where it took them all."""
    if provider.engine == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for part in session.get_provider_graph_assignment_info():
        kinds[part.ep_name == CPU] += [node.op_type for node in part.get_nodes()]
    left, total = kinds[True], sum(map(len, kinds.values()))
    if not left:
        return []
    return [f"{len(left)} of {total} nodes run on the CPU, not in {short(provider.engine)}: {_counted(left)}"]


def _counted(kinds: list[str]) -> str:
    counts = sorted({kind: kinds.count(kind) for kind in kinds}.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{count} {kind}" for kind, count in counts[:5]) + (" and others" if len(counts) > 5 else "")
