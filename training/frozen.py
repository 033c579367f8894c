"""What frozen layers make of each text, computed once a phase."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling_seqrec import SeqRecPreTrainedModel

MOST_BYTES = 2**30  # of hidden states: 700,000 tokens of width 384


class FrozenStates:
    """Hidden states behind the lowest layers of an encoder, of each text's tokens, kept in memory while a phase lasts.

    They depend on frozen weights and the text's own tokens alone: frozen layers are read without dropout, for what
    does not learn cannot overfit. A text for which there is no room is read each time.
    """

    def __init__(self, encoder: SeqRecPreTrainedModel, layers: int, most_bytes: int = MOST_BYTES):
        self.encoder, self.layers, self.room = encoder, layers, most_bytes
        self._kept: dict[bytes, Tensor] = {}  # of each text, (its tokens, d)

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the model may get other weights: it begins without."""

    def embed(self, *texts: Tensor) -> Tensor:
        """The encoder's `embed` of input_ids, attention_mask, token_type_ids and item_position_ids, (B, L) each."""
        ids, mask, types, positions = texts
        if ids.device.type != "cpu":  # where reading a text again takes less than fetching what was kept of it
            return self.encoder.embed_above(self.layers, self.encoder.embed_below(self.layers, *texts), *texts)
        rows, valid = torch.stack([ids, types, positions], 1).numpy(), mask.bool().numpy()
        names = [row[:, own].tobytes() for row, own in zip(rows, valid, strict=True)]
        fresh = [row for row, name in enumerate(names) if name not in self._kept]
        states = {name: self._kept.get(name) for name in names}
        if fresh:
            new = [part[fresh] for part in texts]
            hidden = self.encoder.embed_below(self.layers, *new)
            for row, own in zip(fresh, hidden.split(new[1].sum(1).tolist()), strict=True):
                states[names[row]] = own
                if names[row] not in self._kept and own.nbytes <= self.room:
                    self._kept[names[row]] = own.clone()  # alone, and not the whole batch it is a part of
                    self.room -= own.nbytes
        return self.encoder.embed_above(self.layers, torch.cat([states[name] for name in names]), *texts)
