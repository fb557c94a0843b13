"""Small random networks of both families, and their exports, each made once per test run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from leadline.bundle import Bundle, load_bundle
from leadline.models import depth_anything, fastdepth
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, Precision, runtime

VIT_SIZE = (56, 84)


@functools.cache
def cnn() -> LoadedModel:
    config = fastdepth.Config(
        encoder_widths=(8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32),
        decoder_widths=(24, 16, 16, 8, 8),
        depthwise=True,
        skip="add",
        lateral=True,
        head="softplus",
        height=64,
        width=96,
    )
    torch.manual_seed(0)
    model = fastdepth.build(config)
    _settle(model, (64, 96))
    _spread(model, picture(0, (64, 96)))
    return LoadedModel(model, fastdepth.contract(config), "tiny-cnn", (), "fastdepth", config)


@functools.cache
def vit() -> LoadedModel:
    config = depth_anything.Config(
        dim=32,
        heads=(1,) * 4,
        head_width=32,
        mlp=(64,) * 4,
        taken=(0, 1, 2, 3),
        grid=5,
        features=8,
        out_channels=(8, 8, 8, 8),
        head_channels=(8, 8),
        head="metric",
        max_depth=20.0,
    )
    torch.manual_seed(0)
    model = depth_anything.build(config).eval()
    _spread(model, picture(0, VIT_SIZE))
    return LoadedModel(model, depth_anything.contract(config), "tiny-vit", (), "depth-anything-v2", config)


def _settle(model: torch.nn.Module, size: tuple[int, int]) -> None:
    """Let batch norms see pictures, so that activations vary from place to place as a trained network's do."""
    model.train()
    with torch.no_grad():
        for seed in range(10):
            model(torch.from_numpy(np.concatenate([picture(10 * seed + k, size) for k in range(4)])))
    model.eval()


def _spread(model: torch.nn.Module, values: np.ndarray) -> None:
    """Scale and shift the last convolution so that its output varies over a picture, as a trained network's does."""
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d) and layer.out_channels == 1][-1]
    logits: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda *call: logits.append(call[2]))
    with torch.no_grad():
        model(torch.from_numpy(values))
        hook.remove()
        assert last.bias is not None
        gain = 1.0 / logits[0].std()
        last.weight *= gain
        last.bias.sub_(logits[0].mean()).mul_(gain)


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """1 x 3 x h x w float32 in 0..1: smooth waves, an edge and some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / size[0]
    planes = [np.sin(random.uniform(2, 9) * x + random.uniform(0, 6)) * np.cos(random.uniform(2, 9) * y) for _ in "rgb"]
    values = 0.5 + 0.35 * np.stack(planes) + random.normal(0, 0.03, (3, *size))
    values[:, random.integers(size[0]) :, random.integers(size[1]) :] *= random.uniform(0.2, 1)
    return values.clip(0, 1)[None].astype(np.float32)


def pictures(count: int, size: tuple[int, int] = (64, 96)) -> tuple[np.ndarray, ...]:
    return tuple(picture(1000 + seed, size) for seed in range(count))


@functools.cache
def exported(
    name: str, engine: str, precision: str, size: tuple[int, int] | None = None, dynamic: bool = False
) -> Bundle:
    """The network `cnn` or `vit` as a bundle of an engine."""
    model, side = (cnn(), size or (64, 96)) if name == "cnn" else (vit(), size or VIT_SIZE)
    options = ExportOptions(
        precision=Precision(precision),
        size=side,
        dynamic=dynamic,
        calibration=pictures(8, side) if precision == "int8-static" else (),
    )
    folder = _root() / f"{name}-{engine}-{precision}-{side[0]}-{side[1]}-{dynamic}"
    if folder.exists():  # asked for in other words before
        return load_bundle(folder)
    folder.mkdir()
    return runtime(engine).export(model, options, folder)


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="leadline-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def expected(model: LoadedModel, values: np.ndarray) -> np.ndarray:
    """What PyTorch computes."""
    with torch.inference_mode():
        output: np.ndarray = model.model(torch.from_numpy(values)).numpy()
    return output
