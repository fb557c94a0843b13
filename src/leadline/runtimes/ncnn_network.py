"""ncnn's network in memory, from files that were checked first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from leadline.errors import BundleError, ConfigError, UnavailableError
from leadline.runtimes.ncnn_file import known_kinds, read_layers, split_weights

SOURCE, RESULT = "in0", "out0"  # what pnnx calls them
WEIGHTS = "model.ncnn.bin"


def load_network(
    text: str, data: bytes, *, half: bool, threads: int = 1, device: str = "cpu", keep: bool = False
) -> Any:
    """An `ncnn.Net` of the two files' contents, which are checked first: ncnn crashes where they are wrong.

    Args:
        text: of the `.param` file.
        data: of the `.bin` file.
        half: FP16 between layers and in arithmetic, where the device has it.
        threads: 0 leaves it to ncnn.
        device: `cpu`, `vulkan` or `vulkan:1`.
        keep: leave each blob in memory so that any can be asked for.

    Raises:
        BundleError: the contents are wrong.
        UnavailableError: this ncnn lacks an operator.
        ConfigError: there is no such device.
    """
    import ncnn

    layers = read_layers(text)
    made = {name for layer in layers for name in layer.outputs}
    if not {SOURCE, RESULT} <= made:
        raise BundleError("not an ncnn network of one picture", why=f"it has no {SOURCE} or no {RESULT}")
    if missing := next((layer.kind for layer in layers if ncnn.layer_to_index(layer.kind) < 0), None):
        mend = "update ncnn or export to another runtime"
        raise UnavailableError("ncnn lacks an operator", where=missing, mend=mend)
    if known_kinds(layers):
        split_weights(layers, data)
    network = ncnn.Net()
    settings = network.opt
    if threads:
        settings.num_threads = threads
    settings.lightmode = not keep
    settings.use_fp16_packed = settings.use_fp16_storage = settings.use_fp16_arithmetic = half
    _choose_device(ncnn, network, device)
    with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        weights = Path(folder) / WEIGHTS  # what was checked is what ncnn reads
        weights.write_bytes(data)
        if network.load_param_mem(text) or network.load_model(str(weights)):
            raise BundleError("ncnn cannot load its network", why="it says no more")
    return network


def _choose_device(ncnn: Any, network: Any, device: str) -> None:
    kind, _, number = device.lower().partition(":")
    if kind == "cpu" and not number:
        network.opt.use_vulkan_compute = False
        return
    if kind != "vulkan" or not (number or "0").isdigit():
        raise ConfigError("ncnn cannot use the device", where=device, why="it has cpu and vulkan", mend="use cpu")
    count = ncnn.get_gpu_count()
    if int(number or 0) >= count:
        raise ConfigError("ncnn cannot use the device", where=device, why=f"it sees {count} GPUs", mend="use cpu")
    network.opt.use_vulkan_compute = True
    network.set_vulkan_device(int(number or 0))
