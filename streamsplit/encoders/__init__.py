"""Encoders that can be cut after any block: what runs before the cut is the head, what runs after it the tail."""
