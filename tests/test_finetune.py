"""`leadline train` on data of one's own: with depth, with a teacher, from a film; the result works in every verb."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

import tiny_models
from leadline.checkpoint import load_checkpoint, save_checkpoint
from leadline.cli import app
from leadline.data.rendered import Camera, render_sequence
from leadline.depth import Kind
from leadline.errors import DataError, KindError
from leadline.reference import LoadedModel, load_model
from leadline.training.config import TrainConfig
from leadline.training.plan import Plan, plan

SIZE = ("--size", "96,128")
BRIEF = ("--iterations", "2", "--batch", "2", "--threads", "1", *SIZE)


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, the same pictures alone, a film, and small trained networks."""
    root = tmp_path_factory.mktemp("own")
    invoke("data", "render", "--out", root / "pairs", "--count", 4, *SIZE, "--fov", 63)
    shutil.copytree(root / "pairs" / "images", root / "photos")
    write_film(root / "film.mp4")
    save(root / "metric", tiny_models.cnn())
    changed = {"kind": "relative_disparity", "start_depth": 1.0}
    config = tiny_models.fastdepth.Config.model_validate(tiny_models.cnn().config.model_dump() | changed)  # type: ignore[union-attr]
    network, contract = tiny_models.fastdepth.build(config), tiny_models.fastdepth.contract(config)
    save(root / "relative", LoadedModel(network.eval(), contract, "relative", (), "fastdepth", config))
    return root


def save(folder: Path, loaded: LoadedModel) -> None:
    assert loaded.architecture is not None
    assert loaded.config is not None
    facts = {"architecture": loaded.architecture, "config": loaded.config, "contract": loaded.contract}
    save_checkpoint(folder, loaded.model, **facts)  # type: ignore[arg-type]


def write_film(path: Path) -> None:
    """A drive through a rendered street, 8 frames of 96 x 128, 80 degrees wide."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 4_000_000
        for sample in render_sequence(5, frames=8, height=96, width=128, camera=Camera(0.6, 0.8)):
            for packet in stream.encode(av.VideoFrame.from_ndarray(sample.image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def works_everywhere(checkpoint: Path, place: Path, tmp_path: Path, protocol: str) -> None:
    """Predict, evaluate, export and benchmark take the result."""
    out = tmp_path / "depth"
    invoke("predict", place / "photos", "--model", checkpoint, *SIZE, "--out", out, "--save", "npy")
    assert len(list(out.rglob("*.npy"))) == 4
    found = invoke("evaluate", checkpoint, "--data", place / "pairs", "--protocol", protocol, *SIZE, "--json")
    assert "abs_rel" in found.stdout
    bundle = tmp_path / "bundle"
    invoke("export", checkpoint, "--runtime", "onnxruntime", *SIZE, "--out", bundle)
    measured = json.loads(invoke("benchmark", bundle, "--runs", 3, "--warmup", 1, "--json").stdout)
    assert str(bundle) in json.dumps(measured)


def test_pictures_with_depth(place: Path, tmp_path: Path) -> None:
    said = invoke("train", "--model", place / "metric", "--data", place / "pairs", *BRIEF, "--out", tmp_path / "run")
    first = said.stderr.splitlines()[0]
    assert "(trained, metric_depth) learns from depth of pairs (metric_depth); loss silog + 0.1 gradient" in first
    assert "rate 0.0003" in first
    checkpoint = tmp_path / "run" / "checkpoint"
    assert load_checkpoint(checkpoint).contract.output.kind is Kind.METRIC_DEPTH
    works_everywhere(checkpoint, place, tmp_path, "plain")


def test_pictures_alone_with_a_teacher(place: Path, tmp_path: Path) -> None:
    """Both stages resume: a label that is missing is made again, and training goes on after its iterations."""
    run = tmp_path / "run"
    pictures, teacher = place / "photos", place / "metric"
    line = ("train", "--model", "random:leadline-xs", "--data", pictures, "--teacher", teacher, "--out", run)
    said = invoke(*line, *BRIEF).stderr
    assert "(fresh weights, metric_depth) learns from labels of" in said
    assert "4 labelled, 0 before" in said
    labels = sorted((run / "labels" / "labels").glob("*.png"))
    before = [path.read_bytes() for path in labels]
    assert len(before) == 4
    labels[1].unlink()
    again = invoke(*line, *BRIEF, "--iterations", 3)
    assert "1 labelled, 3 before" in again.stderr
    assert "3 iterations, done" in again.stdout
    assert [path.read_bytes() for path in labels] == before
    rows = (run / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    contract = load_checkpoint(run / "checkpoint").contract
    assert contract.training_data == (f"{place / 'photos'}, labelled by {place / 'metric'}",)
    works_everywhere(run / "checkpoint", place, tmp_path, "plain")


def test_a_film(place: Path, tmp_path: Path) -> None:
    data = f"frames:{place / 'film.mp4'}?fov=80"
    said = invoke("train", "--model", "lite-mono-tiny", "--data", data, *BRIEF, "--out", tmp_path / "run").stderr
    first = said.splitlines()[0]
    assert "(fresh weights, scaled_disparity) learns from frames of film.mp4; loss photometric" in first
    assert "rate 0.0005" in first
    checkpoint = tmp_path / "run" / "checkpoint"
    assert set(load_checkpoint(checkpoint).auxiliary()) == {"pose"}
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["sources"][0]["frames"] == [-1, 1]
    assert stored["objectives"][0]["pose"]["network"] == "small"
    works_everywhere(checkpoint, place, tmp_path, "kitti-eigen")


def test_the_doctor_speaks_of_metres_that_rest_on_nothing(place: Path, tmp_path: Path) -> None:
    data = f"{place / 'film.mp4'}?fov=80"
    said = invoke("train", "--model", place / "metric", "--data", data, *BRIEF, "--out", tmp_path / "run").stderr
    assert "metres that will drift" in said


def chosen(tmp_path: Path, model: object, *data: str, teacher: object = None, **more: object) -> Plan:
    values = {"model": str(model), "sources": [{"data": each} for each in data], **more}
    return plan(TrainConfig.model_validate(values), tmp_path / "run", None if teacher is None else str(teacher))


def losses(found: Plan) -> list[tuple[str, float]]:
    return [(objective.loss, objective.weight) for objective in found.config.objectives]


def test_losses_follow_the_networks_kind_and_the_targets(place: Path, tmp_path: Path) -> None:
    pairs, photos = str(place / "pairs"), str(place / "photos")
    forgiving = [("ssi", 1.0), ("gradient", 0.5)]
    found = chosen(tmp_path, place / "relative", pairs)
    assert losses(found) == forgiving
    assert found.start.contract.output.kind is Kind.RELATIVE_DISPARITY
    mixed = chosen(tmp_path, place / "metric", pairs, photos, teacher=place / "relative")
    assert losses(mixed) == [("silog", 1.0), ("gradient", 0.1), ("ssi", 0.3)]
    assert [source.labels for source in mixed.config.sources] == [None, str(tmp_path / "run" / "labels")]
    assert losses(chosen(tmp_path, "lite-mono-tiny", pairs)) == [("median-centred", 1.0), ("gradient", 0.5)]
    kept = chosen(tmp_path, place / "metric", pairs, objectives=[{"loss": "l1"}], learning_rate=3e-4)
    assert losses(kept) == [("l1", 1.0)]
    assert kept.config.learning_rate == 3e-4


def test_fresh_weights_take_the_kind_of_a_relative_teacher_and_trained_metres_do_not(
    place: Path, tmp_path: Path
) -> None:
    photos = str(place / "photos")
    found = chosen(tmp_path, "random:leadline-xs", photos, teacher=place / "relative")
    assert found.start.contract.output.kind is Kind.RELATIVE_DISPARITY
    assert losses(found) == [("ssi", 1.0), ("gradient", 0.5)]
    assert found.config.learning_rate == 1e-3
    with pytest.raises(KindError, match="its metres would drift"):
        chosen(tmp_path, place / "metric", photos, teacher=place / "relative")
    with pytest.raises(KindError, match="losses in metres 'silog'"):
        chosen(tmp_path, place / "metric", photos, teacher=place / "relative", objectives=[{"loss": "silog"}])


def test_a_run_that_was_begun_keeps_its_losses_and_rate(place: Path, tmp_path: Path) -> None:
    line = ("train", "--model", place / "metric", "--data", place / "pairs", *BRIEF, "--out", tmp_path / "run")
    invoke(*line, "--loss", "l1", "--learning-rate", "0.003")
    found = chosen(tmp_path, place / "metric", str(place / "pairs"))
    assert losses(found) == [("l1", 1.0)]
    assert found.config.learning_rate == 0.003


def test_pictures_without_depth_name_both_ways_out(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        chosen(tmp_path, place / "metric", str(place / "photos"))
    assert "--teacher REF" in str(caught.value)
    assert f"'frames:{place / 'photos'}?fov=60'" in str(caught.value)


@pytest.mark.parametrize("data", ["{}/film.mp4", "frames:{}/film.mp4?every=2", "frames:{}/photos"])
def test_frames_without_a_camera_say_what_to_add(place: Path, tmp_path: Path, data: str) -> None:
    reference = data.format(place)
    with pytest.raises(DataError, match="frames without a camera") as caught:
        chosen(tmp_path, "lite-mono-tiny", reference)
    assert f"'{reference}{'&' if '?' in reference else '?'}fov=60'" in str(caught.value)


def test_losses_that_need_frames_alone_get_them_from_any_sequence(tmp_path: Path) -> None:
    street = "rendered:street,count=1,sequence=6,height=96,width=128"
    line = ("train", "--model", "lite-mono-tiny", "--data", street, "--loss", "photometric", "--loss", "smoothness")
    said = invoke(*line, *BRIEF, "--out", tmp_path / "run").stderr
    assert "loss photometric + 0.001 smoothness" in said
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["sources"][0]["frames"] == [-1, 1]


def test_a_film_teaches_a_relative_network_as_one_of_scaled_disparity(place: Path, tmp_path: Path) -> None:
    data = f"frames:{place / 'film.mp4'}?fov=80"
    line = ("train", "--model", place / "relative", "--data", data, *BRIEF, "--out", tmp_path / "run")
    assert "its relative_disparity is read as scaled_disparity, as frames know no shift" in invoke(*line).stderr
    checkpoint = tmp_path / "run" / "checkpoint"
    assert load_checkpoint(checkpoint).contract.output.kind is Kind.SCALED_DISPARITY
    works_everywhere(checkpoint, place, tmp_path, "kitti-eigen")


def test_frames_need_a_kind_with_geometry(place: Path, tmp_path: Path) -> None:
    found, below = load_model(str(place / "relative")), tmp_path / "below"
    output = found.contract.output.model_copy(update={"minimum": None})
    save(below, replace(found, contract=found.contract.model_copy(update={"output": output})))
    with pytest.raises(KindError, match=r"self-supervision cannot start at .*may be negative.*lite-mono-tiny"):
        chosen(tmp_path, below, f"{place / 'film.mp4'}?fov=80")


@pytest.mark.parametrize(
    ("model", "data", "more", "says"),
    [
        ("metric", "pairs", ("--teacher", "leadline-s-indoor"), "all data has depth"),
        ("nothing", "pairs", (), "no model"),
        ("film.mp4", "pairs", (), "no model"),
    ],
)
def test_faults_are_one_line_and_leave_no_run(
    place: Path, tmp_path: Path, model: str, data: str, more: tuple[str, ...], says: str
) -> None:
    run = tmp_path / "run"
    result = invoke("train", "--model", place / model, "--data", place / data, *more, "--out", run, status=2)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (run / "checkpoint").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "rendered"), "no model to train. Give --model REF"),
        (("--model", "leadline-s", "--set", "augmentation.zoom=1.2"), "--set 'augmentation={zoom: 1.2}'"),
        (("--model", "lite-mono-tiny", "--data", "frames:two?fov=60"), "sequence of at least 3 frames is needed"),
        (("--model", "leadline-s", "--data", "nothing"), "no data 'nothing': the folder is empty"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    invoke("data", "render", "--out", "pairs", "--count", 2, *SIZE, "--fov", 63)
    shutil.copytree(tmp_path / "pairs" / "images", tmp_path / "two")
    assert says in invoke("train", *words, "--out", "run", status=2).stderr
    assert not (tmp_path / "run").exists()


def test_pictures_that_nobody_labelled_are_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels"
    invoke("pseudo-label", place / "metric", place / "photos", "--out", store)
    next((store / "labels").glob("*.png")).unlink()
    line = ("train", "--model", place / "metric", "--data", f"pseudo:{place / 'photos'},{store}", *BRIEF)
    said = invoke(*line, "--out", tmp_path / "run").stderr
    assert "learns from labels of photos (metric_depth)" in said
    assert "still rising when the run ends (warmup 100 of 2 iterations)" in said
    assert "1 of 4 pictures without a label left out, the first: " in said
    assert "goes on after 2 iterations" in invoke(*line, "--iterations", 3, "--out", tmp_path / "run").stderr


def test_an_exported_file_is_no_start(place: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    invoke("export", place / "metric", "--runtime", "onnxruntime", *SIZE, "--out", bundle)
    result = invoke("train", "--model", bundle, "--data", place / "pairs", "--out", tmp_path / "run", status=2)
    assert "Give the checkpoint it was exported from" in result.stderr


def test_a_picture_that_cannot_be_labelled_stops_or_is_left_out(place: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(place / "photos", photos)
    (photos / "zz.png").write_bytes(b"no picture")
    line = ("train", "--model", "random:leadline-xs", "--data", photos, "--teacher", place / "metric", *BRIEF)
    stopped = invoke(*line, "--out", tmp_path / "run", status=2)
    assert "pictures that cannot be labelled" in stopped.stderr
    assert "--skip-bad" in stopped.stderr
    went = invoke(*line, "--skip-bad", "--out", tmp_path / "run", status=1)
    assert "0 labelled, 4 before" in went.stderr
    assert "left out zz" in went.stderr
    assert (tmp_path / "run" / "checkpoint" / "weights.safetensors").is_file()
