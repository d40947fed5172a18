"""Data sources by name: what they hold, and where they are looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixels import everything
from sklearn.datasets import load_digits

from compress.errors import UserError
from compress.tasks.base import prepared_batches
from compress.zoo.data import DATA, data_root, load_data


def test_digits_are_all_there_and_stretched():
    data = load_data("digits")
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [1294, 143, 360]
    assert len(data.task.classes) == 10
    images = np.concatenate([everything(s)[0] for s in (data.train, data.validation, data.test)])
    assert images.shape == (1797, 1, 8, 8)
    levels = np.round(load_digits().images * 255 / 16)
    assert images.sum(dtype=np.int64) == int(levels.sum())
    assert images.max() == 255


DIGITS = "6298650cb5b8"
DIGITS_HELD_OUT = [7, 22, 27]
DIGITS_CALIBRATION = [1109, 399, 872]


def test_digits_never_change():
    # A pinned value: published results on digits depend on this split.
    data = load_data("digits")
    assert data.fingerprint.startswith(DIGITS)
    assert data.validation.index[:3].tolist() == DIGITS_HELD_OUT
    assert data.calibration.index[:3].tolist() == DIGITS_CALIBRATION


def test_a_probe_is_of_different_images_also_without_any_of_the_data():
    data = load_data("digits")
    for given in (data.task, replace(data.task, samples=None)):
        assert len(torch.unique(given.probe()[0], dim=0)) == 4
    learnt = [
        images
        for split in (data.train, data.validation)
        for (images,), _ in prepared_batches(data.task, split, 500)
    ]
    real = torch.cat(learnt)
    assert all((real == item).flatten(1).all(1).any() for item in data.task.probe()[0])


def test_stacked_inputs_are_those_of_one_batch(monkeypatch) -> None:
    from bench_fixtures import small_digits

    from compress.tasks import base

    data = small_digits()
    raw, _ = data.test.fetch(base.spaced(30, len(data.test)))
    [expected] = data.task.prepare(raw, torch.device("cpu"))
    for size in (1, 7, 64):
        monkeypatch.setattr(base, "STACKED", size)
        [found] = base.stacked_inputs(data.task, data.test, 30)
        assert torch.equal(found, expected)


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="Did you mean 'fashion-mnist'"):
        load_data("fashion_mnist")
    with pytest.raises(UserError, match="unknown data source 'digits:x'"):
        load_data("digits:x")
    with pytest.raises(UserError, match="needs a path"):
        load_data("imagefolder:")
    assert "arrays:PATH" in DATA


def test_a_folder_without_its_scheme_is_told_how_it_is_named(tmp_path):
    with pytest.raises(UserError, match=f"write imagefolder:{tmp_path}"):
        load_data(str(tmp_path))


def test_data_root_is_as_given_or_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_DATA_ROOT", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root(Path("there")) == Path("there")
    monkeypatch.delenv("COMPRESS_DATA_ROOT")
    assert data_root().name == "compress-models"


def test_absent_data_says_where_it_looked(tmp_path, monkeypatch):
    import torchvision.datasets.mnist as mnist

    def offline(*_args, **_kwargs):
        raise RuntimeError("Error downloading it:\nthere is no network.")

    with pytest.raises(UserError, match="downloading is switched off"):
        load_data("mnist", tmp_path, download=False)
    monkeypatch.setattr(mnist, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=f"MNIST is not in {tmp_path}, and downloading") as caught:
        load_data("mnist", tmp_path)
    assert "there is no network. Connect to the network" in str(caught.value)


def test_mnist_is_read_without_a_download(shared_data):
    data = load_data("mnist", shared_data, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    images, labels = everything(data.test)
    assert images.shape == (10000, 1, 28, 28)
    assert data.validation.index[:3].tolist() == [7, 9, 26], "pinned as for digits"
    # The published counts of the test digits.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == counts
    assert abs(images.mean() / 255 - 0.1325) < 1e-4
