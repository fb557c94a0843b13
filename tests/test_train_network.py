"""`network`: a variant with some keys of its configuration changed."""

import pytest

from leadline.depth import Kind
from leadline.errors import ConfigError
from leadline.models.registry import variants
from leadline.training.config import TrainConfig
from leadline.training.run import starting_point


def test_network_keys_change_a_variant_and_nothing_else():
    words = {"model": "random:leadline-s", "sources": [{"data": "rendered:room"}]}
    changed = TrainConfig(**words, network={"kind": "relative_disparity", "head": "softplus"})
    start = starting_point(changed)
    assert start.contract.output.kind is Kind.RELATIVE_DISPARITY
    assert start.config.decoder_widths == variants()["leadline-s"][1].decoder_widths
    with pytest.raises(ConfigError, match=r"Did you mean .kind."):
        starting_point(TrainConfig(**words, network={"kinds": "relative_disparity"}))
    with pytest.raises(ConfigError, match="use head softplus"):
        starting_point(TrainConfig(**words, network={"kind": "relative_disparity"}))
    with pytest.raises(ConfigError, match="Leave `network` out"):
        starting_point(TrainConfig(**{**words, "model": "leadline-s-indoor"}, network={"kind": "relative_disparity"}))
