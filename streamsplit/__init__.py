"""StreamSplit: audio representations learned from an endless stream, split between a device and a server.

Shape letters used in every docstring of the package:

| letter | meaning |
| --- | --- |
| B | batch |
| S | samples of one window (15,360 at 16 kHz = 0.96 s, unless an encoder says otherwise) |
| F | mel bands (64) |
| T | frames (96) |
| C, H, W | channels, frequency rows and time columns of an activation |
| D | embedding dimension (128) |
| K | components of the distribution memory (64) |
| L | the last split: everything up to the embedding runs on the device |
"""

import os
import sys

__version__ = "0.1.0"

if sys.platform == "linux":
    # gRPC's event engine hands every message through two more threads than its own poller does: a third of a round trip's time at a
    # window's pace (0.92 -> 0.62 ms, `benchmarks/echo.py`). It reads this once, when it is imported; who has set it is left alone.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
