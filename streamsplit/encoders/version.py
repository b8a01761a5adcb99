"""An encoder version: weights, front end and wire ranges that belong together, under one name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.split import SplitEncoder
from streamsplit.wire.codec import Codec, Ranges, embedding_bytes, most_packed_bytes

ID_DIGITS: Final = 12
COUNTER: Final = "num_batches_tracked"
"""Batch norm's step counter: kept with the weights, but no part of what they compute, so no part of the version's name."""

ExpectedBytes = Mapping[tuple[int, Codec], float]


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """Head and tail of one window always come from one version.

    Attributes:
        id: the encoder's name, a dash, and 12 hexadecimal digits over weights, front end and ranges. Equal ids compute equally.
        encoder: ready for inference: folded, evaluation mode, no gradients, float32. It cannot be trained; see `trainable`.
        front_end: how PCM becomes its log-mel.
        ranges: split -> range per channel for the wire; of every split but L.
        expected_bytes: (split, codec) -> mean packed bytes of a window, measured when the ranges were calibrated.
        trained: False for random weights, whose embeddings mean little.
        note: where it comes from, for people.
        state: the unfolded weights, by name. Do not write to them.
    """

    id: str
    encoder: SplitEncoder
    front_end: FrontEndSettings
    ranges: Mapping[int, Ranges]
    expected_bytes: ExpectedBytes
    trained: bool
    note: str
    state: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The encoder's registry name."""
        return self.encoder.name

    def packed_bytes(self, split: int, codec: Codec) -> float:
        """Bytes that one window cut at `split` is expected to cost, as decisions and tables count them; before gRPC's framing.

        Exact for embeddings. For the rest the mean over the sound the version was calibrated on, because what compression saves
        depends on weights and sound. With the shipped `compact` the mean over half an hour of other sound of that kind was within
        1 % at every split by every codec, and nine windows of ten within 56 % below and 44 % above (int4 at split 3: 37 and 37).
        Other sound has other means: ESC-50 5 to 9 % less by the integer codecs, soundscapes with long quiet stretches up to
        45 % less. No window costs more than `streamsplit.wire.codec.most_packed_bytes`, which stands in where nothing was measured.
        """
        if split == self.encoder.last_split:
            return float(embedding_bytes(codec, self.encoder.embedding_dim))
        most = float(most_packed_bytes(self.encoder.activation_spec(split), codec))
        return self.expected_bytes.get((split, codec), most)

    def trainable(self) -> SplitEncoder:
        """A fresh unfolded copy to train, in evaluation mode as it comes."""
        with torch.random.fork_rng(
            devices=[]
        ):  # weights that are about to be replaced must not use up the caller's chance
            encoder = build(self.name, self.front_end, self.encoder.options)
        encoder.load_state_dict(dict(self.state))
        return encoder.eval()


def freeze(
    encoder: SplitEncoder,
    ranges: Mapping[int, Ranges],
    expected_bytes: ExpectedBytes,
    trained: bool,
    note: str = "",
) -> Version:
    """Makes a version of a trainable encoder as it is now; training may go on without touching it.

    Args:
        encoder: as `build` made it, in any mode.
        ranges: see `calibrate.calibrate`.
        expected_bytes: likewise.
        trained: whether its weights have been trained.
        note: for people.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    twin = encoder.for_inference().cpu()
    identity = f"{encoder.name}-{_digits(state, encoder, ranges)}"
    return Version(
        identity, twin, encoder.front_end, dict(ranges), dict(expected_bytes), trained, note, state
    )


def _digits(state: Mapping[str, Tensor], encoder: SplitEncoder, ranges: Mapping[int, Ranges]) -> str:
    digest = hashlib.sha256()
    digest.update(encoder.front_end.fingerprint.encode())
    digest.update(json.dumps(encoder.options, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        if name.endswith(COUNTER):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    for split, bounds in sorted(ranges.items()):
        digest.update(f"ranges {split}".encode())
        digest.update(bounds.low.astype("<f4").tobytes() + bounds.high.astype("<f4").tobytes())
    return digest.hexdigest()[:ID_DIGITS]
