"""Keys and values of the tokens already read, per layer and row; rows may have different lengths.

Knows nothing about models: attention writes here, whoever finishes a pass calls `advance`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moesaic.config import DecoderConfig


class Cache:
    """Room for `capacity` tokens of b rows. Row i holds `lengths[i]` tokens; what stands after them is never seen.

    Chunks are right-padded: a pass writes all its tokens after each row's length, `advance` keeps the real ones, and
    the next pass writes over the padding.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: Int[Tensor, " b"]):
        self.keys, self.values, self.lengths = keys, values, lengths

    @staticmethod
    def empty(config: DecoderConfig, rows: int, capacity: int, like: Tensor) -> "Cache":
        shape = (rows, config.num_kv_heads, capacity, config.head_dim)
        keys = [like.new_zeros(shape) for _ in range(config.num_layers)]
        values = [like.new_zeros(shape) for _ in range(config.num_layers)]
        return Cache(keys, values, torch.zeros(rows, dtype=torch.long, device=like.device))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def positions(self, t: int) -> Int[Tensor, "b t"]:
        """Where the next t tokens of each row will stand."""
        return self.lengths[:, None] + torch.arange(t, device=self.lengths.device)

    def visible(self, positions: Int[Tensor, "b t"], window: int = 0) -> Bool[Tensor, "b 1 t s"]:
        """Which slots a token at each position may see: those up to its own, or of these the last `window`."""
        slots = torch.arange(self.capacity, device=positions.device)
        own = positions[:, None, :, None]
        return (slots <= own) & (slots > own - window) if window else slots <= own

    def write(
        self, layer: int, k: Float[Tensor, "b h t hd"], v: Float[Tensor, "b h t hd"], positions: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b h s hd"], Float[Tensor, "b h s hd"]]:
        """Put a chunk in its place and return all keys and values of the layer."""
        index = positions[:, None, :, None].expand(k.shape)
        self.keys[layer].scatter_(2, index, k)
        self.values[layer].scatter_(2, index, v)
        return self.keys[layer], self.values[layer]

    def advance(self, tokens: int | Int[Tensor, " b"]) -> None:
        """Count the tokens just read by all layers: one number, or one for each row."""
        self.lengths = self.lengths + tokens

    def select(self, rows: Int[Tensor, " g"]) -> "Cache":
        """Some of the rows, in the order given (a row may be taken more than once)."""
        return Cache([k[rows] for k in self.keys], [v[rows] for v in self.values], self.lengths[rows])

    def put(self, rows: Int[Tensor, " g"], part: "Cache") -> None:
        """Write back what `select(rows)` gave, each row once, after it has read on."""
        for own, new in zip((*self.keys, *self.values), (*part.keys, *part.values), strict=True):
            own[rows] = new
        self.lengths = self.lengths.index_copy(0, rows, part.lengths)

    def repeat(self, n: int) -> "Cache":
        """n copies of each row, side by side."""
        return self.select(torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(n))

    def grow(self, capacity: int) -> "Cache":
        """The same rows with room for `capacity` tokens."""
        pad = (0, 0, 0, capacity - self.capacity)
        return Cache(
            [torch.nn.functional.pad(k, pad) for k in self.keys],
            [torch.nn.functional.pad(v, pad) for v in self.values],
            self.lengths,
        )

    @staticmethod
    def join(parts: list["Cache"]) -> "Cache":
        """All rows of several caches in one batch, with the largest capacity among them."""
        capacity = max(part.capacity for part in parts)
        grown = [part.grow(capacity) for part in parts]
        layers = range(len(grown[0].keys))
        return Cache(
            [torch.cat([part.keys[layer] for part in grown]) for layer in layers],
            [torch.cat([part.values[layer] for part in grown]) for layer in layers],
            torch.cat([part.lengths for part in grown]),
        )
