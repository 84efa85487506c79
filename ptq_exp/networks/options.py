"""Checks of options that several networks have."""

from ptq_exp.base.errors import UserError


def check_channels(channels: list[int], lengths: tuple[int, int]) -> None:
    """Raise `UserError` unless `channels` are positive integers, one per stage or one per convolution."""
    if len(channels) not in lengths or not all(isinstance(count, int) and count > 0 for count in channels):
        raise UserError(
            f"model.channels={channels} is not a list of channels. Allowed: {lengths[0]} positive integers (one per "
            f"stage) or {lengths[1]} (one per 3x3 convolution)."
        )
