"""The device: sound in, windows embedded or sent, nothing lost."""
