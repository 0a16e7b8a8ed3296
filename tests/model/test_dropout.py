"""Dropout of whole channels."""

import torch

from model.dropout import ChannelDropout


def test_a_channel_is_dropped_at_all_positions_or_at_none() -> None:
    torch.manual_seed(0)
    dropped = ChannelDropout(0.4)(torch.ones(64, 5, 128))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0.0, round(1 / 0.6, 4)}


def test_the_share_dropped_is_p_and_the_mean_is_kept() -> None:
    torch.manual_seed(0)
    # 262,144 draws: five standard deviations of the share are 0.0047.
    dropped = ChannelDropout(0.3)(torch.ones(512, 1, 512))
    assert abs((dropped == 0).double().mean().item() - 0.3) < 0.0047
    assert abs(dropped.double().mean().item() - 1) < 0.01


def test_sequences_of_a_batch_draw_for_themselves() -> None:
    torch.manual_seed(0)
    first, second = ChannelDropout(0.5)(torch.ones(2, 1, 256))
    assert not torch.equal(first, second)
