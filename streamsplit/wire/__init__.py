"""Bytes between machines: codecs for tensors and audio, and the messages that carry them."""
