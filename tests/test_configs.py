"""Every configuration that the repository offers is one that a run can start with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from leadline.data.dataset import open_dataset
from leadline.depth import Kind
from leadline.models.registry import architecture, parse_config, variants
from leadline.reference import fresh_variant
from leadline.training.config import TrainConfig, load_config

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
KINDS = {  # of what each network predicts; a new configuration is named here
    "ablation": Kind.SCALED_DISPARITY,
    "distillation": Kind.RELATIVE_DISPARITY,
    "kitti-mono": Kind.SCALED_DISPARITY,
    "kitti-odometry": Kind.SCALED_DISPARITY,
    "kitti-stereo": Kind.SCALED_DISPARITY,
    "leadline-s": Kind.RELATIVE_DISPARITY,
    "leadline-s-continued": Kind.RELATIVE_DISPARITY,
    "leadline-s-indoor": Kind.METRIC_DEPTH,
    "leadline-s-road": Kind.METRIC_DEPTH,
    "leadline-xs": Kind.RELATIVE_DISPARITY,
    "leadline-xs-indoor": Kind.METRIC_DEPTH,
    "leadline-xs-road": Kind.METRIC_DEPTH,
    "rendered-drive": Kind.SCALED_DISPARITY,
}


def read(name: str) -> TrainConfig:
    """The configuration without looking for its data."""
    return TrainConfig.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def test_each_configuration_is_held_to_a_kind() -> None:
    assert {path.stem for path in CONFIGS} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_one_that_can_be_built_at_the_size(name: str) -> None:
    config = read(name)
    variant = fresh_variant(config.model)
    if variant is None:  # goes on with the network of another configuration
        assert Path(config.model).parts[0] == "runs"
        assert KINDS[Path(config.model).parts[1]] is KINDS[name]
        return
    family, known = variants()[variant]
    network = parse_config(family, {**known.model_dump(mode="json"), **config.network})
    contract = architecture(family).contract(network)
    assert contract.output.kind is KINDS[name]
    assert config.size is None or contract.checked_size(config.size) == config.size
    assert (config.camera is not None) == (KINDS[name] is Kind.METRIC_DEPTH)


@pytest.mark.parametrize("name", KINDS)
def test_objectives_and_sources_fit_each_other(name: str) -> None:
    config = read(name)
    framed = [source.frames for source in config.sources if source.frames]
    assert any(objective.needs_frames for objective in config.objectives) == bool(framed)
    assert len({tuple(frames) for frames in framed}) <= 1
    assert config.batch >= len(config.sources)
    assert config.licence
    assert config.training_data


@pytest.mark.parametrize("name", KINDS)
def test_rendered_sources_open(name: str) -> None:
    for source in read(name).sources:
        if source.data.startswith("rendered"):
            assert len(open_dataset(source.data, source.split)) >= (source.last or 1)


@pytest.mark.data
@pytest.mark.parametrize("name", KINDS)
def test_every_path_leads_somewhere(name: str, shared_data: Path) -> None:
    if shared_data.parent.resolve() != (FOLDER.parent.parent / "shared").resolve():
        pytest.skip("the research data does not lie beside the repository")
    config = load_config(FOLDER / f"{name}.yaml", {})
    for source in config.sources:
        dataset = open_dataset(source.data, source.split)
        assert len(range(len(dataset))[source.first : source.last]) > 1


@pytest.mark.data
def test_the_late_frames_of_the_drive_are_none_that_the_road_networks_learn(shared_data: Path) -> None:
    data = str(shared_data / "kitti_raw")
    late = open_dataset(data, str(FOLDER / "kitti-0005-late.txt"))
    learned = {
        name
        for source in read("leadline-s-road").sources
        if "kitti" in source.data
        for name in open_dataset(
            f"kitti-raw:{data}{'?truth=none' if source.split == 'all' else ''}", source.split
        ).names()[source.first : source.last]
    }
    assert len(late) == 13
    assert len(learned) == 101
    assert not learned & set(late.names())
