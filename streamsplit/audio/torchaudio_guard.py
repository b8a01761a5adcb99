"""Lets torchaudio be imported beside a CPU torch. Import this before anything that imports torchaudio (transformers does).

The registry's torchaudio wheel for Linux links its optional extension against CUDA libraries, so beside a CPU build of torch plain
``import torchaudio`` dies with OSError. Without an extension file torchaudio runs as pure Python, a case it supports by itself: its
loader then reports "not found". Here, and only after the import has failed, that loader is made to report just that. Where torchaudio
imports, nothing is touched.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_LOADER = "torchaudio._extension.utils"


def import_torchaudio() -> ModuleType:
    """Imports torchaudio, without its compiled extension where that cannot be loaded.

    Importing this module has done so once; the function is for code that wants the module in hand.

    Returns:
        The module torchaudio.

    Raises:
        ImportError: torchaudio is not installed.
        OSError, RuntimeError: it fails for another reason than its extension.
    """
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        loader = sys.modules.get(_LOADER)
        if loader is None:  # it failed before it came to the extension
            raise
        loader._load_lib = lambda lib: False  # type: ignore[attr-defined]
        return importlib.import_module("torchaudio")


import_torchaudio()
