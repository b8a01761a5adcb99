"""Experiments: replays, demo, shaped links; everything that runs client and server together."""
