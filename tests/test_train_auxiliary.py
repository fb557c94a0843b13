"""Modules trained beside the network: they learn, survive a kill bit by bit, and go on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny_models
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.errors import CheckpointError
from leadline.reference import load_model
from leadline.training.config import TrainConfig
from leadline.training.fit import STATE, Result, Start, fit
from leadline.training.learner import prepare
from leadline.training.objectives.base import Seen, Term
from leadline.training.objectives.supervised import Silog
from leadline.training.run import auxiliary_weights
from leadline.training.team import Team

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the union does not know `Mended`


class Mended(Term):
    """The error that is left after a small network beside the depth network has corrected the depth."""

    loss: Literal["mended"] = "mended"
    width: int = 4

    def modules(self) -> dict[str, nn.Module]:
        norm = nn.BatchNorm2d(self.width)
        return {"mend": nn.Sequential(nn.Conv2d(1, self.width, 3, padding=1), norm, nn.Conv2d(self.width, 1, 1))}

    def term(self, seen: Seen) -> Tensor:
        mended = seen.outputs.maps[0] + seen.modules["mend"](seen.outputs.maps[0])
        seen.notes["largest"] = float(mended.detach().max())
        return ((mended - seen.batch.target).abs() * seen.batch.valid).mean()


def config(**changes: Any) -> TrainConfig:
    base = TrainConfig.model_validate(
        {
            "model": "tiny",
            "sources": [{"data": "rendered:room,count=8,height=48,width=64"}],
            "size": [32, 64],
            "batch": 2,
            "iterations": 6,
            "warmup": 1,
            "threads": 1,
            "ema": 0.9,
            "save_every": 3,
            "decay": 0,
        }
        | changes
    )
    return base.model_copy(update={"objectives": [Silog(), Mended()]})


def beginning(**beside: dict[str, Tensor]) -> Start:
    tiny = tiny_models.cnn()
    torch.manual_seed(0)
    from leadline.models import fastdepth

    assert isinstance(tiny.config, fastdepth.Config)
    return Start(fastdepth.build(tiny.config), tiny.contract, "fastdepth", tiny.config, auxiliary=dict(beside))


@pytest.fixture
def resumable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The union of objectives is closed, so a saved run with a stranger's is compared without its objectives."""
    monkeypatch.setattr("leadline.training.checkpointing.FREE", {"objectives", "iterations"})


@pytest.mark.usefixtures("resumable")
def test_three_iterations_and_three_more_are_six_bit_by_bit(tmp_path: Path) -> None:
    fit(config(), beginning(), tmp_path / "whole")
    fit(config(iterations=3), beginning(), tmp_path / "halves")
    fit(config(), beginning(), tmp_path / "halves")
    whole, halves = (load_file(tmp_path / name / STATE) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert {key for key in whole if key.startswith("auxiliary.mend.1.")} >= {"auxiliary.mend.1.running_mean"}
    start = load_file(tmp_path / "whole" / STATE)["auxiliary.mend.1.num_batches_tracked"]
    assert int(start) == 6


def test_auxiliary_modules_learn_at_their_own_rate(tmp_path: Path) -> None:
    def moved(factor: float) -> float:
        fresh = prepare(config(), beginning().model, {}, Team(torch.device("cpu"))).auxiliary["mend"]
        out = tmp_path / str(factor)
        run = fit(config(iterations=1, auxiliary_rate=factor, weight_decay=0.0), beginning(), out)
        pairs = zip(fresh.parameters(), run.auxiliary["mend"].parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    # Adam's first step is the learning rate itself, whatever the gradient's size
    assert moved(1.0) == pytest.approx(1e-3, rel=0.01)
    assert moved(0.1) == pytest.approx(1e-4, rel=0.01)


def test_notes_stand_beside_the_terms(tmp_path: Path) -> None:
    terms: list[dict[str, float]] = []
    fit(config(iterations=1), beginning(), tmp_path / "run", on_progress=lambda step: terms.append(step.terms))
    assert terms[0].keys() == {"silog", "mended", "largest"}
    assert np.isfinite(list(terms[0].values())).all()
    assert "largest=" in (tmp_path / "run" / "log.csv").read_text()


def saved(run: Result, folder: Path, **more: Any) -> Path:
    tiny = beginning()
    save_checkpoint(
        folder,
        run.model,
        architecture=tiny.architecture,
        config=tiny.config,
        contract=run.contract,
        auxiliary=run.auxiliary,
        **more,
    )
    return folder


def test_a_run_that_starts_at_a_checkpoint_goes_on_with_its_auxiliary_weights(tmp_path: Path) -> None:
    run = fit(config(iterations=2), beginning(), tmp_path / "run")
    folder = saved(run, tmp_path / "checkpoint")
    stored = load_checkpoint(folder).auxiliary()
    ours = run.auxiliary["mend"].state_dict()
    assert stored.keys() == {"mend"}
    assert all(torch.equal(stored["mend"][key], value) for key, value in ours.items())
    assert load_model(str(folder)).model is not None  # who only predicts never looks at them

    beside = auxiliary_weights(str(folder))
    learner = prepare(config(), beginning().model, beside, Team(torch.device("cpu")))
    assert all(torch.equal(value, ours[key]) for key, value in learner.auxiliary["mend"].state_dict().items())
    assert auxiliary_weights("leadline-s-nowhere") == {}


def test_auxiliary_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    other = {"mend": Mended(width=5).modules()["mend"].state_dict()}
    with pytest.raises(CheckpointError, match="mend"):
        fit(config(iterations=1), beginning(**other), tmp_path / "run")


def test_a_damaged_auxiliary_file_is_found_by_the_manifest(tmp_path: Path) -> None:
    folder = saved(fit(config(iterations=1), beginning(), tmp_path / "run"), tmp_path / "checkpoint")
    path = folder / "auxiliary.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"auxiliary\.safetensors"):
        load_checkpoint(folder)
