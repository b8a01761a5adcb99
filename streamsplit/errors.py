"""Every error StreamSplit raises on purpose.

    StreamSplitError
    |-- ConfigError              a setting, a command-line value or a file the user named is wrong (also a ValueError)
    |-- CaptureError             the microphone or a recording cannot be heard
    |   `-- RecordingError       one file cannot be read; the caller skips it and records that
    |-- LinkError                the network or the other machine is not there now; trying again may help
    |-- ProtocolError
    |   |-- RemoteProtocolError  the peer broke the protocol: its fault
    |   `-- LocalProtocolError   we were about to break it: our fault, a bug
    |-- RefusedError             the server answered, and said no (identity, version, limits); trying again will not help
    |-- PayloadError             bytes that do not decode to what was announced (also a ValueError)
    `-- StorageError             a disk that is full, read-only or corrupt

A message names the item, what was expected and what came: ``window 812: expected 15360 samples, got 15200``.
"""

from __future__ import annotations


class StreamSplitError(Exception):
    """The root: the command line prints its message on one line and exits with status 1."""


class ConfigError(StreamSplitError, ValueError):
    """A setting or an argument is wrong: the message names it, the value and what is legal."""


class CaptureError(StreamSplitError):
    """Sound cannot be had from a microphone or recording."""


class RecordingError(CaptureError):
    """One recording cannot be read."""


class LinkError(StreamSplitError):
    """The other machine cannot be reached at present."""


class ProtocolError(StreamSplitError):
    """A message that the protocol does not allow at this point."""


class RemoteProtocolError(ProtocolError):
    """The peer sent it."""


class LocalProtocolError(ProtocolError):
    """We were about to send it."""


class RefusedError(StreamSplitError):
    """The server refused this device for a reason that trying again does not cure."""


class PayloadError(StreamSplitError, ValueError):
    """Bytes do not decode to the tensor or audio that was announced."""


class StorageError(StreamSplitError):
    """A database or folder cannot be read or written."""
