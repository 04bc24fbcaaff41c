"""The approximate index: it finds nearly what the exact search finds, and is whole or absent."""

import numpy as np
import pytest
import torch

import clair
from clair.index import Index, recall


def features(count=2000, width=32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, width))[rng.integers(20, size=count)] + 0.7 * rng.normal(size=(count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def gallery():
    return features()


@pytest.fixture(scope="module")
def index(gallery, tmp_path_factory):
    return Index.build(np.array_split(gallery, 7), tmp_path_factory.mktemp("index") / "deep" / "g.index")


@pytest.mark.parametrize("dtype", ["f32", "i8"])
def test_it_finds_nearly_all_true_neighbours(gallery, tmp_path, dtype):
    query = features(50, seed=1)
    _, exact = clair.search(query, gallery, 10, progress=False)
    _, some = clair.search(query, Index.build([gallery], tmp_path / "g", dtype=dtype), 10)
    assert some.shape == (50, 10)
    assert recall(some, exact) > (0.95 if dtype == "f32" else 0.85)


def test_scores_are_cosines_nearest_first(gallery, index):
    query = torch.from_numpy(features(5, seed=2))
    scores, places = clair.search(query, index, 4)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(scores, (query.numpy()[:, None] * gallery[places]).sum(-1), atol=0.03)


def test_rows_keep_their_numbers_over_chunks(gallery, index):
    rows = [0, 285, 286, 1999]
    _, places = index.search(gallery[rows], 1)
    assert places[:, 0].tolist() == rows
    assert index.count == len(gallery)


def test_a_single_thread_gives_the_same_file(gallery, tmp_path):
    for name in ("a", "b"):
        Index.build([gallery[:500]], tmp_path / name, threads=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_build_leaves_what_was_there(gallery, tmp_path):
    path = tmp_path / "g"
    Index.build([gallery[:50]], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"shape \(3, 5\): give \[items, 32\]"):
        Index.build([gallery[:50], np.zeros((3, 5))], path)
    with pytest.raises(ValueError, match="NaN"):
        Index.build([np.full((2, 4), np.nan)], path)
    with pytest.raises(ValueError, match="no features"):
        Index.build([], path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g", "g.json"]


def test_bad_questions_get_one_sentence(index, gallery, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make one with Index\.build"):
        Index(tmp_path / "none")
    with pytest.raises(ValueError, match=r"give \[queries, 32\]"):
        index.search(np.zeros((2, 5)), 1)
    for k in (0, len(gallery) + 1):
        with pytest.raises(ValueError, match="ask for 1 to 2000"):
            index.search(gallery[:2], k)
    with pytest.raises(ValueError, match="twins"):
        clair.search(gallery[:2], index, 1, query_ids=[1, 2], gallery_ids=range(2000))
