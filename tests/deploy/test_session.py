"""Answers of a file, some batches at a time."""

from __future__ import annotations

import deploy_models
import numpy as np
import pytest
import torch

from compress.deploy.session import predict, predict_in_streams, session, split


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_give_what_one_batch_after_another_gives_and_in_order(streams):
    content = deploy_models.float_file("cnn")
    batches = split((deploy_models.images(50),), 3)
    expected = predict(session(content, threads=1), batches)
    found = predict_in_streams(session(content, threads=1), iter(batches), streams)
    np.testing.assert_array_equal(found, expected)


def test_an_error_of_a_batch_or_of_its_maker_is_raised():
    content = deploy_models.float_file("cnn")

    def broken():
        yield (deploy_models.images(2),)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        predict_in_streams(session(content, threads=1), broken(), 2)
    with pytest.raises(Exception, match=r"[Ii]nvalid"):
        predict_in_streams(session(content, threads=1), [(torch.zeros(2, 1),)], 2)
    with pytest.raises(ValueError, match="no batch"):
        predict_in_streams(session(content, threads=1), [], 2)
