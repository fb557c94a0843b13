"""Protocols: pixel bounds, masks and caps as published; geometry of fastdepth-224; refusals; known floors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leadline.data.dataset import Sample
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, KindError
from leadline.evaluation.alignment import Alignment
from leadline.evaluation.protocols import GARG_CROP, KITTI_EIGEN_CROP, NYU_EIGEN_CROP, PROTOCOLS, get_protocol
from leadline.evaluation.scoring import score


def metric(values):
    return Depth(np.asarray(values, np.float32), Kind.METRIC_DEPTH)


@pytest.mark.parametrize(
    ("size", "bounds"),
    [
        ((375, 1242), (153, 371, 44, 1197)),
        ((370, 1226), (151, 366, 44, 1181)),
        ((370, 1224), (151, 366, 43, 1180)),
        ((376, 1241), (153, 372, 44, 1196)),
        ((374, 1238), (152, 370, 44, 1193)),
    ],
)
def test_garg_crop(size, bounds):
    """SPEC.md 4.4, and the mask that evaluation uses."""
    assert GARG_CROP.bounds(*size) == bounds
    truth = metric(np.full(size, 5.0))
    rows, cols = np.nonzero(get_protocol("kitti-eigen").valid(truth, truth))
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == bounds


def test_other_crops():
    assert KITTI_EIGEN_CROP.bounds(375, 1242) == (124, 342, 44, 1197)
    assert NYU_EIGEN_CROP.bounds(480, 640) == (45, 471, 41, 601)
    truth = metric(np.full((480, 640), 5.0))
    counted = get_protocol("nyu-eigen").valid(truth, truth)
    assert counted.sum() == (471 - 45) * (601 - 41)
    assert counted[45, 41]
    assert counted[470, 600]
    eigen = get_protocol("kitti-eigen/eigen-crop").valid(metric(np.full((375, 1242), 5.0)), truth)
    assert eigen.sum() == (342 - 124) * (1197 - 44)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("nyu-eigen", [False, False, True, True, False, False, False]),
        ("kitti-eigen", [False, False, True, True, True, False, False]),
        ("kitti-benchmark", [False, True, True, True, True, False, False]),
        ("ddad", [False, True, True, True, True, True, False]),
        ("fastdepth-224", [False, True, True, True, True, True, True]),
    ],
)
def test_caps_are_exclusive(name, counts):
    column = np.array([0.0, 1e-3, 0.5, 9.99, 10.0, 80.0, 200.0], np.float32)
    truth = metric(np.tile(column[:, None, None], (1, 40, 40)).reshape(280, 40))
    counted = get_protocol(name).valid(truth, truth).reshape(7, 40, 40)
    crop = get_protocol(name).crop
    if crop is None:
        assert [bool(part.all()) for part in counted] == counts
    else:  # the crop hides some rows: look at single values at a place inside it
        inside = [get_protocol(name).valid(metric(np.full((40, 40), v)), truth)[20, 20] for v in column]
        assert inside == counts


def test_prediction_is_clamped_to_the_range():
    values = np.array([-1.0, 0.0, 5.0, 500.0])
    assert get_protocol("nyu-eigen").clamp(values).tolist() == [1e-3, 1e-3, 5.0, 10.0]
    assert get_protocol("ddad").clamp(values).tolist() == [1e-3, 1e-3, 5.0, 200.0]
    assert get_protocol("fastdepth-224").clamp(values).tolist() == values.tolist()


def test_cap_of_zero_shot_comes_from_the_data():
    protocol = get_protocol("zero-shot-disparity")
    assert protocol.for_data(12.0).cap == 12.0
    assert protocol.for_data(None).cap == 80.0
    assert get_protocol("nyu-eigen").for_data(5.0).cap == 10.0
    assert math.isinf(get_protocol("fastdepth-224").for_data(5.0).cap)


def test_plain_aligns_by_kind_and_crops_nothing():
    protocol = get_protocol("plain")
    assert protocol.crop is None
    labels = {kind: protocol.label_for(kind) for kind in Kind}
    assert labels[Kind.METRIC_DEPTH] == "plain/none"
    assert labels[Kind.SCALED_DISPARITY] == "plain/median"
    assert labels[Kind.RELATIVE_DEPTH] == "plain/lsq-depth"
    assert labels[Kind.RELATIVE_DISPARITY] == "plain/lsq-disparity"


def test_labels():
    assert get_protocol("nyu-eigen").label == "nyu-eigen"
    assert get_protocol("nyu-eigen-median").label == "nyu-eigen/median"
    assert get_protocol("nyu-eigen", "median").label == "nyu-eigen/median"
    assert get_protocol("nyu-eigen/none").label == "nyu-eigen"  # what it has anyway
    assert get_protocol("kitti-eigen").label_for(Kind.METRIC_DEPTH) == "kitti-eigen/none"
    assert get_protocol("kitti-eigen").label_for(Kind.SCALED_DISPARITY) == "kitti-eigen/median"
    for name in ("nyu-eigen/lsq-disparity/pooled", "fastdepth-224/or-mask", "kitti-eigen/eigen-crop"):
        assert get_protocol(name).label == name
        assert get_protocol(get_protocol(name).label_for(Kind.METRIC_DEPTH)).crop == get_protocol(name).crop


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nyu-eigne", "Did you mean 'nyu-eigen'"),
        ("nyu-eigen/medain", "Did you mean 'median'"),
        ("nyu-eigen/or-mask", "It belongs to fastdepth-224"),
        ("fidelity/median", "fidelity has no variant"),
        ("fastdepth-224/median/or-mask", "or-mask"),
        ("fastdepth-224/or-mask/median", "or-mask"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ConfigError, match=message):
        get_protocol(name)


ACCEPTED = {
    "nyu-eigen": {Kind.METRIC_DEPTH},
    "fastdepth-224": {Kind.METRIC_DEPTH},
    "kitti-eigen": {Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY},
    "kitti-benchmark": {Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY},
    "ddad": {Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY},
    "zero-shot-disparity": {Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY, Kind.RELATIVE_DISPARITY},
    "plain": set(Kind),
    "fidelity": set(Kind),
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("kind", list(Kind))
def test_kinds(name, kind):
    protocol = get_protocol(name)
    if kind in ACCEPTED[name]:
        assert kind in protocol.alignment_for(kind).kinds
    else:
        mend = "lsq-depth" if kind is Kind.RELATIVE_DEPTH else "zero-shot-disparity"
        with pytest.raises(KindError, match=f"my-model.*{kind.value}.*Use .*{mend}"):
            protocol.alignment_for(kind, "my-model")


def test_proposed_protocol_accepts_relative_depth():
    assert get_protocol("nyu-eigen/lsq-depth").alignment_for(Kind.RELATIVE_DEPTH) is Alignment.LSQ_DEPTH


def test_fastdepth_geometry():
    """Nearest to 250 x 333, centre crop 228 x 304 at (11, 14), nearest to 224 x 224; depth and camera with it."""
    rows, cols = np.mgrid[0:480, 0:640]
    image = np.stack([rows % 256, cols % 256, cols // 256], axis=2).astype(np.uint8)
    depth = metric(rows * 1000 + cols)
    camera = Intrinsics(500.0, 510.0, 320.0, 240.0)
    out = get_protocol("fastdepth-224").prepare(Sample("a", image, depth, camera))
    assert out.image.shape == (224, 224, 3)
    for i, j in [(0, 0), (0, 223), (223, 0), (100, 57), (223, 223)]:
        row = math.floor((math.floor((i + 0.5) * 228 / 224) + 11 + 0.5) * 480 / 250)
        col = math.floor((math.floor((j + 0.5) * 304 / 224) + 14 + 0.5) * 640 / 333)
        assert out.depth.values[i, j] == row * 1000 + col
        assert out.image[i, j].tolist() == [row % 256, col % 256, col // 256]
    assert out.intrinsics.fx == pytest.approx(500 * 333 / 640 * 224 / 304)
    assert out.intrinsics.fy == pytest.approx(510 * 250 / 480 * 224 / 228)
    assert out.intrinsics.cx == pytest.approx((320 * 333 / 640 - 14) * 224 / 304)
    assert out.intrinsics.cy == pytest.approx((240 * 250 / 480 - 11) * 224 / 228)


def test_fastdepth_geometry_refuses_narrow_pictures():
    with pytest.raises(DataError, match=r"tall.*480 pixels wide"):
        get_protocol("fastdepth-224").prepare(Sample("tall", np.zeros((640, 480, 3), np.uint8)))


def test_or_mask():
    truth, pred = metric(np.zeros((4, 4))), metric(np.eye(4))
    truth.values[0] = 1.0
    assert get_protocol("fastdepth-224").valid(truth, pred).sum() == 4
    assert get_protocol("fastdepth-224/or-mask").valid(truth, pred).sum() == 7


def read_nyu(path):
    from PIL import Image

    return ((np.asarray(Image.open(path), np.float64) + 0.5) * 9.99547 / 255).astype(np.float32)


@pytest.fixture(scope="module")
def nyu(shared_data):
    """The mean depth map of the training pictures, and the test maps."""
    train = sorted((shared_data / "nyu/train/depth").glob("*.png"))
    mean = sum(read_nyu(path).astype(np.float64) for path in train) / len(train)
    return mean.astype(np.float32), [read_nyu(path) for path in sorted((shared_data / "nyu/test/depth").glob("*.png"))]


FLOORS = [
    ("mean", "nyu-eigen", 0.410, 0.426),
    ("mean", "nyu-eigen-median", 0.263, 0.557),
    ("mean", "nyu-eigen/lsq-disparity", 0.222, 0.597),
    ("row", "nyu-eigen/lsq-disparity", 0.245, 0.555),
]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("what", "name", "abs_rel", "delta1"), FLOORS)
def test_floors(nyu, what, name, abs_rel, delta1):
    """Two predictions that look at no picture score what was published for them (PEERS.md).

    Published on the 545 official test pictures that are not among our 109: the means must agree within what two
    such samples differ by (3 standard errors of the difference).
    """
    mean, truths = nyu
    rows = np.repeat(np.arange(480, dtype=np.float32)[:, None], 640, axis=1)
    pred = Depth(mean, Kind.METRIC_DEPTH) if what == "mean" else Depth(rows, Kind.RELATIVE_DISPARITY)
    found = [score(pred, Depth(truth, Kind.METRIC_DEPTH), get_protocol(name)).metrics for truth in truths]
    assert len(found) == 109
    for metric_name, published in (("abs_rel", abs_rel), ("delta1", delta1)):
        values = np.array([one[metric_name] for one in found])
        error = values.std(ddof=1) * math.sqrt(1 / 109 + 1 / 545)
        assert abs(values.mean() - published) < 3 * error


@pytest.mark.data
def test_floor_by_plain_numpy(shared_data):
    """The pinned crop, cap and alignments, written out without the code under test."""
    mean = np.mean([read_nyu(path) for path in sorted((shared_data / "nyu/train/depth").glob("*.png"))[::40]], axis=0)
    box = np.s_[45:471, 41:601]
    for path in sorted((shared_data / "nyu/test/depth").glob("*.png"))[::20]:
        truth = read_nyu(path)
        gt, pred = truth[box].astype(np.float64), mean[box].astype(np.float64)
        keep = (gt > 1e-3) & (gt < 10)
        gt, pred = gt[keep], pred[keep]
        scale, shift = np.polyfit(1 / pred, 1 / gt, 1)
        aligned = {
            "nyu-eigen": pred,
            "nyu-eigen/median": pred * np.median(gt) / np.median(pred),
            "nyu-eigen/lsq-disparity": 1 / np.maximum(scale / pred + shift, 1e-6),
        }
        for name, depth in aligned.items():
            depth = np.clip(depth, 1e-3, 10)
            found = score(Depth(mean, Kind.METRIC_DEPTH), Depth(truth, Kind.METRIC_DEPTH), get_protocol(name)).metrics
            assert found["abs_rel"] == pytest.approx(np.mean(np.abs(depth - gt) / gt), rel=1e-6)
            assert found["delta1"] == pytest.approx(np.mean(np.maximum(depth / gt, gt / depth) < 1.25), abs=2e-5)
            assert found["rmse"] == pytest.approx(np.sqrt(np.mean((depth - gt) ** 2)), rel=1e-6)
