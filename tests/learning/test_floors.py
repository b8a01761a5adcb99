"""Floors by their definitions."""

from __future__ import annotations

import torch

from streamsplit.learning.floors import mean_log_mel, mel_statistics


def test_mel_statistics_are_mean_deviation_deviation_of_steps_and_maximum_of_each_band() -> None:
    mel = torch.zeros(1, 1, 2, 4)
    mel[0, 0, 0] = torch.tensor([0.0, 2.0, 0.0, 6.0])
    assert mean_log_mel(mel).tolist() == [[2.0, 0.0]]
    expected = torch.tensor([[2.0, 0.0, 6.0**0.5, 0.0, 32**0.5 / 3, 0.0, 6.0, 0.0]])
    torch.testing.assert_close(mel_statistics(mel), expected)
    assert not torch.equal(mel_statistics(mel), mel_statistics(mel.flip(2)))
