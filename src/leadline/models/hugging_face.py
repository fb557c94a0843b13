"""Depth networks from Hugging Face: Depth Anything in this project's own implementation, any other by transformers.

Only safetensors and JSON are read, and no code of the folder is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError, ModelReferenceError, UnavailableError, one_line
from leadline.models import depth_anything
from leadline.models.depth_anything_weights import from_hugging_face, is_supported
from leadline.models.hugging_face_contract import REPOSITORY, hugging_face_contract, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadline.contract import Contract
    from leadline.depth import Kind
    from leadline.models.depth_anything import Config
    from leadline.models.dinov2 import PositionRule

INSTALL = 'pip install "leadline[hf]"'
WANTED_FILES = ("*.safetensors", "*.json", "README.md")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A network that was read from a Hugging Face folder.

    Args:
        model: float32, eval mode, N x 3 x H x W to N x 1 x h x w.
        contract: what it expects and returns.
        architecture: its entry in the registry, where this project's own implementation runs it; else None.
        config: that architecture's configuration.
    """

    model: nn.Module
    contract: Contract
    architecture: str | None = None
    config: Config | None = None


def load_hugging_face(place: str, *, kind: Kind | None = None, positions: PositionRule = "size") -> HuggingFaceModel:
    """The network of a local folder, or of `owner/name` on the hub (from the cache, or downloaded).

    Args:
        place: a folder, or `owner/name`.
        kind: what the network returns, where its files do not say.
        positions: see `load_hugging_face_folder`.

    Raises:
        ModelReferenceError: neither a folder nor a name of the form `owner/name`, or no such repository.
        UnavailableError: transformers is missing, or the hub cannot be reached and the cache does not hold it.
        CheckpointError, ContractError, KindError: as `load_hugging_face_folder`.
    """
    folder = Path(place) if Path(place).is_dir() else download(place)
    name = Path(place).resolve().name if Path(place).is_dir() else place
    return load_hugging_face_folder(folder, name=name, kind=kind, positions=positions)


def load_hugging_face_folder(
    folder: Path, *, name: str | None = None, kind: Kind | None = None, positions: PositionRule = "size"
) -> HuggingFaceModel:
    """The network of a Hugging Face folder: `config.json`, safetensors, and a processor's file.

    Args:
        folder: holds the files.
        name: for the contract; None takes the folder's.
        kind: what the network returns, where its files do not say.
        positions: how Depth Anything interpolates its positions at other sizes than 518 x 518. `size` gives the
            numbers that transformers gives; `scale_factor_offset` those of the authors' code (SPEC.md 6.2).

    Raises:
        CheckpointError: weights are missing, incomplete or pickled.
        ContractError: the folder does not say how pictures are prepared.
        KindError: the folder does not say what the values mean, or `kind` contradicts it.
        UnavailableError: the network needs transformers, which is not installed.
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    values = read_json(folder / "config.json")
    if is_supported(values):
        config, state = from_hugging_face(values, _read_weights(folder), positions)
        contract = hugging_face_contract(folder, values, name, kind, max_depth=config.max_depth)
        return HuggingFaceModel(_own_network(config, state, folder), contract, "depth-anything-v2", config)
    contract = hugging_face_contract(folder, values, name, kind)
    return HuggingFaceModel(TransformersDepth(_transformers_network(folder), str(values["model_type"])), contract)


def download(repository: str) -> Path:
    """The folder of `owner/name` in the hub's cache, fetched where it is not there; only safetensors and JSON.

    Raises:
        ModelReferenceError: the name has another form, or there is no such repository.
        UnavailableError: huggingface_hub is missing, or the hub cannot be reached.
    """
    if not re.fullmatch(REPOSITORY, repository):
        why, mend = "neither a folder nor owner/name", "write hf:OWNER/NAME, as on huggingface.co"
        raise ModelReferenceError("no Hugging Face model", where=repository, why=why, mend=mend)
    _require("huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(WANTED_FILES)))
    except GatedRepoError as error:
        mend = "accept its terms on huggingface.co and log in with `hf auth login`"
        raise UnavailableError("the model's terms must be accepted", where=repository, mend=mend) from error
    except LocalEntryNotFoundError as error:
        mend = "connect, or copy the model's folder here and give its path"
        why = "the Hugging Face hub cannot be reached and the cache does not hold it"
        raise UnavailableError("cannot fetch", where=repository, why=why, mend=mend) from error
    except RepositoryNotFoundError as error:
        raise ModelReferenceError("no Hugging Face model", where=repository, why="the hub does not know it") from error
    except (OSError, RuntimeError) as error:  # its HTTP errors are OSErrors; a closed connection is a RuntimeError
        mend = "try again, or copy the model's folder here and give its path"
        raise UnavailableError("cannot fetch", where=repository, why=one_line(error), mend=mend) from error


class TransformersDepth(nn.Module):
    """A transformers depth network as a plain one: N x 3 x H x W to N x 1 x h x w.

    Args:
        network: an `AutoModelForDepthEstimation`.
        model_type: Depth Pro returns inverse depth for a field of view that it estimates; it becomes metres here.
    """

    def __init__(self, network: nn.Module, model_type: str) -> None:
        super().__init__()
        self.network, self.model_type = network, model_type

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W float32, normalised, to N x 1 x h x w in the contract's kind."""
        output = self.network(pixel_values=image)
        values: Tensor = output.predicted_depth
        fov_deg = getattr(output, "field_of_view", None)
        if self.model_type == "depth_pro" and fov_deg is not None:
            inverse = values * 2 * torch.tan(torch.deg2rad(fov_deg) / 2).reshape(-1, *[1] * (values.ndim - 1))
            values = 1 / inverse.clamp(1e-4, 1e4)
        return values if values.ndim == 4 else values.unsqueeze(1)


def _own_network(config: Config, state: dict[str, Tensor], folder: Path) -> nn.Module:
    with torch.device("meta"):
        network = depth_anything.build(config)
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError("weights do not fit", where=folder, why=" ".join(lines[1:2] or lines)) from error
    return network.requires_grad_(True).eval()


def _transformers_network(folder: Path) -> nn.Module:
    _require("transformers")
    _refuse_pickles(folder)
    from transformers import AutoModelForDepthEstimation

    with _quiet_transformers():
        try:
            network, report = AutoModelForDepthEstimation.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            raise CheckpointError("transformers cannot load", where=folder, why=one_line(error)) from error
    lost = sorted(str(key) for key in [*report["missing_keys"], *report.get("mismatched_keys", ())])
    if lost:
        why = f"{len(lost)} tensors missing or of another shape ({lost[0]})"
        raise CheckpointError("incomplete weights", where=folder, why=why)
    loaded: nn.Module = network
    return loaded.eval()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_pickles(folder)
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / "model.safetensors.index.json").is_file():
        shards = read_json(folder / "model.safetensors.index.json").get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError("unsafe index of weights", where=folder, why=f"{name!r} lies outside the folder")
        try:
            tensors.update(load_file(folder / name))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError("unreadable weights", where=folder / name, why=one_line(error)) from error
    return tensors


def _refuse_pickles(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        found = next((path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)), None)
        why = f"{found} is a pickle, which can run code" if found else "no *.safetensors file in the folder"
        raise CheckpointError("no safe weights", where=folder, why=why, mend="use a revision with safetensors")


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed", why="this model needs it", mend=INSTALL)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading reports and progress bars off: what is wrong with the weights is raised instead."""
    from transformers.utils import logging

    level: Any = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
