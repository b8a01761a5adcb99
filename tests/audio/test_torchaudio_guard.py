from __future__ import annotations

import subprocess
import sys


def test_torchaudio_works_in_a_fresh_interpreter_after_the_guard() -> None:
    program = (
        "import streamsplit.audio.torchaudio_guard, torch, torchaudio\n"
        "print(torchaudio.transforms.Resample(48_000, 16_000)(torch.zeros(48_000)).shape[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16000"]
