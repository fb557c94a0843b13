"""The store of pseudo-labels: values, facts, damage, and as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_datasets as tiny
from leadline.data.dataset import open_dataset
from leadline.data.label_store import LabelStore, StoreInfo, picture_hash
from leadline.depth import Depth, Kind
from leadline.errors import DataError, ImageReadError, KindError, OutputError

HASH = "0" * 64


def info(kind: Kind = Kind.RELATIVE_DISPARITY, **changes: object) -> StoreInfo:
    values = {
        "teacher": "a",
        "teacher_name": "a",
        "teacher_sha256": HASH,
        "height": 224,
        "width": 288,
        "resize": "stretch",
    }
    return StoreInfo.model_validate({**values, "kind": kind, **changes})


def disparity(h: int = 6, w: int = 8) -> np.ndarray:
    """0 to 150 with zeros, as Depth Anything gives it."""
    return np.linspace(0, 150, h * w, dtype=np.float32).reshape(h, w)


def put(store: LabelStore, name: str, values: np.ndarray, picture: str = HASH, size: tuple[int, int] | None = None):
    return store.put(name, Depth(values, store.info.kind), picture=picture, size=size or values.shape)


def test_a_label_comes_back_within_a_step_of_its_range(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    values = disparity()
    put(store, "room/a.b c ü", values)
    depth = LabelStore(tmp_path / "store").get("room/a.b c ü")
    assert depth is not None
    assert depth.kind is Kind.RELATIVE_DISPARITY
    assert np.abs(depth.values - values).max() <= 150 / 65534
    assert depth.values[0, 0] == 0  # the teacher's zero stays a zero
    assert store.names() == ["room/a.b c ü"]
    assert "room/a.b c ü" in store
    assert store.get("room/none") is None


@given(low=st.floats(-100, 100), spread=st.floats(1e-3, 1e4), seed=st.integers(0, 99))
def test_any_range_keeps_sixteen_bits(tmp_path_factory: pytest.TempPathFactory, low: float, spread: float, seed: int):
    store = LabelStore.create(tmp_path_factory.mktemp("s") / "store", info())
    values = (low + spread * np.random.default_rng(seed).random((5, 7))).astype(np.float32)
    put(store, "x", values)
    depth = store.get("x")
    assert depth is not None
    rounding = 4 * np.spacing(np.float32(np.abs(values).max()))  # of float32 itself
    assert np.abs(depth.values - values).max() <= 0.51 * np.ptp(values) / 65534 + rounding


def test_metres_keep_millimetres_and_what_is_not_known(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info(Kind.METRIC_DEPTH))
    values = np.array([[0.0, 1.2345], [7.0004, 9.9996]], np.float32)
    facts = put(store, "x", values)
    depth = store.get("x")
    assert depth is not None
    assert depth.values[0, 0] == 0
    assert np.abs(depth.values - values).max() <= 0.00051
    assert facts.invalid == 1


def test_facts_say_what_the_label_holds(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    values = np.array([[0.0, 0.0, 3.0], [4.0, 10.0, np.nan]], np.float32)
    put(store, "x", values, picture="ab" * 32, size=(20, 30))
    facts = store.facts("x")
    assert (facts.minimum, facts.median, facts.maximum) == (0.0, 3.0, 10.0)
    assert (facts.zeros, facts.invalid, facts.degenerate) == (2, 1, False)
    assert (facts.picture, facts.picture_height, facts.picture_width) == ("ab" * 32, 20, 30)


def test_a_constant_label_is_marked_and_comes_back(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    assert put(store, "x", np.full((3, 4), 2.5, np.float32)).degenerate
    depth = store.get("x")
    assert depth is not None
    assert np.array_equal(depth.values, np.full((3, 4), 2.5, np.float32))


def test_a_label_is_enlarged_to_its_picture_and_holes_do_not_bleed(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    ramp = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    put(store, "ramp", ramp, size=(2, 4))
    depth, same = store.get("ramp"), store.get("ramp", (2, 2))
    assert depth is not None
    assert same is not None
    assert np.allclose(depth.values[0], [0, 0.25, 0.75, 1], atol=1e-4)  # pixel centres at integers + 0.5
    assert same.shape == (2, 2)
    put(store, "hole", np.array([[np.nan, 5.0]], np.float32), size=(1, 4))
    hole = store.get("hole")
    assert hole is not None
    assert np.array_equal(np.isnan(hole.values[0]), [True, True, False, False])


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".x"])
def test_names_that_lead_out_of_the_store_are_refused(tmp_path: Path, name: str) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    with pytest.raises(DataError, match="not a name"):
        put(store, name, disparity())


def test_another_kind_is_refused(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    with pytest.raises(KindError, match="metric_depth"):
        store.put("x", Depth(disparity(), Kind.METRIC_DEPTH), picture=HASH, size=(6, 8))


@pytest.mark.parametrize("changes", [{"teacher_sha256": "1" * 64}, {"width": 320}, {"kind": "metric_depth"}])
def test_another_teacher_or_size_needs_another_store(tmp_path: Path, changes: dict[str, object]) -> None:
    LabelStore.create(tmp_path / "store", info())
    with pytest.raises(OutputError, match="not the same store"):
        LabelStore.create(tmp_path / "store", info(**changes))


def test_a_folder_of_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        LabelStore.create(tmp_path, info())
    with pytest.raises(DataError, match="pseudo-label"):
        LabelStore(tmp_path)
    (tmp_path / "store.json").write_text('{"teacher": 1}')
    with pytest.raises(DataError, match="not a label store"):
        LabelStore(tmp_path)


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", info())
    put(store, "x", disparity(40, 50))
    path = store.path("x")
    whole = path.read_bytes()
    for at in (50, len(whole) - 20):  # in the facts, in the codes
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ImageReadError):
            store.get("x")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageReadError):
        store.get("x")
    tiny.png16(path, np.ones((4, 4)))  # a PNG of another origin
    with pytest.raises(ImageReadError, match="carries no facts"):
        store.get("x")


def test_equal_pictures_have_equal_hashes_and_shapes_count() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert picture_hash(image) == picture_hash(np.asfortranarray(image))
    assert picture_hash(image) != picture_hash(image.reshape(4, 2, 3))
    assert picture_hash(image) != picture_hash(image + np.uint8(1))


def labelled(root: Path, name: str, kind: Kind, factor: float) -> LabelStore:
    store = LabelStore.create(root / name, info(kind))
    for stem in ("a", "below/b"):
        put(store, stem, disparity() * np.float32(factor) + 1, size=(12, 16))
    return store


def test_a_store_is_a_data_set_together_with_its_pictures(tmp_path: Path) -> None:
    for stem in ("a", "below/b", "c"):
        tiny.picture(tmp_path / "pictures" / f"{stem}.png", 12, 16)
    labelled(tmp_path, "near", Kind.METRIC_DEPTH, 0.05)
    dataset = open_dataset(f"pseudo:{tmp_path / 'pictures'},{tmp_path / 'near'}")
    assert dataset.kind is Kind.METRIC_DEPTH
    assert dataset.names() == ["a", "below/b"]
    sample = dataset[1]
    assert sample.depth is not None
    assert sample.depth.shape == sample.image.shape[:2] == (12, 16)
    assert sample.depth.values.max() == pytest.approx(8.5, abs=0.001)
    assert [problem.item for problem in dataset.problems()] == ["c"]


def test_several_teachers_label_the_same_pictures(tmp_path: Path) -> None:
    for stem in ("a", "below/b"):
        tiny.picture(tmp_path / "pictures" / f"{stem}.png", 12, 16)
    for name, factor in (("one", 1.0), ("two", 2.0)):
        labelled(tmp_path, name, Kind.RELATIVE_DISPARITY, factor)
    labelled(tmp_path, "metres", Kind.METRIC_DEPTH, 0.05)
    both = open_dataset(f"pseudo:{tmp_path / 'pictures'},{tmp_path / 'one'},{tmp_path / 'two'}")
    assert both.names() == ["a@one", "below/b@one", "a@two", "below/b@two"]
    first, again = both[0].depth, both[2].depth
    assert first is not None
    assert again is not None
    assert np.allclose(again.values - 1, 2 * (first.values - 1), atol=0.02)
    with pytest.raises(KindError, match="a source of its own"):
        open_dataset(f"pseudo:{tmp_path / 'pictures'},{tmp_path / 'one'},{tmp_path / 'metres'}")
