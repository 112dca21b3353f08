"""The part of a data set that is carried to a GPU: classes stay balanced, images as they are, the size as asked for."""

from pathlib import Path

import numpy as np

from benchmarks.gpu_data import part_of


def test_a_part_is_balanced_and_as_large_as_asked_for(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = {"train": np.arange(600) % 3, "test": np.arange(90) % 3}
    images = {part: generator.integers(256, size=(len(of), 28, 28, 3), dtype=np.uint8) for part, of in labels.items()}
    arrays = {f"{part}_{kind}": of[part] for part in labels for kind, of in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "all.npz", classes=np.array(["a", "b", "c"]), **arrays)
    train, test = part_of(tmp_path / "all.npz", 0.5, tmp_path / "out" / "part.npz")
    assert 0.45e6 < (tmp_path / "out" / "part.npz").stat().st_size < 0.55e6
    with np.load(tmp_path / "out" / "part.npz") as part:
        assert (len(part["train_labels"]), len(part["test_labels"])) == (train, test)
        assert np.bincount(part["train_labels"]).tolist() == [train // 3] * 3
        assert np.array_equal(part["train_images"], images["train"][:train])
        assert np.array_equal(part["test_labels"], labels["test"][:test])
