"""Layers that torch lacks and that the pruner knows by type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelPad(nn.Module):
    """Every `stride`-th pixel, between zero channels: a shortcut without parameters (option A: He et al., CVPR 2016).

    Attributes:
        before: zero channels in front of the input's; a cut lowers it.
        after: zero channels behind the input's; a cut lowers it.
        stride: takes every `stride`-th row and column.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    @property
    def zeros(self) -> int:
        """How many zero channels there are, those in front counted first."""
        return self.before + self.after

    def remove_zeros(self, positions: Sequence[int]) -> None:
        """Take out zero channels, by their place among all of them."""
        front = sum(position < self.before for position in positions)
        self.before -= front
        self.after -= len(positions) - front

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, c, height, width]` to `[images, before + c + after, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return the numbers for `print(model)`."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class PrunedAttention(nn.MultiheadAttention):
    """Attention with fewer heads, or fewer channels in and out, than torch's own allows: heads keep their depth.

    A cut turns a `torch.nn.MultiheadAttention` into one; parameters keep their names and calls their form.

    Attributes:
        head_dim: channels of each head.
        num_heads: heads that are left.
        embed_dim: channels in and out.
    """

    head_dim: int

    @staticmethod
    def convert(attention: nn.MultiheadAttention) -> None:
        """Make an attention whose parameters were cut one of these, in place."""
        attention.__class__ = PrunedAttention
        attention.embed_dim = attention.kdim = attention.vdim = attention.out_proj.weight.shape[0]
        attention.out_proj.out_features, attention.out_proj.in_features = attention.out_proj.weight.shape
        attention.head_dim = attention.out_proj.in_features // attention.num_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 (a hint of what is in the mask)
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `torch.nn.MultiheadAttention` does, which see."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        queries, keys, values = map(self._heads, self._projected(query, key, value))
        mask = self._mask(key_padding_mask, attn_mask, queries)
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            attended = weights @ values
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
            )
        output = self.out_proj(attended.transpose(1, 2).flatten(2))  # [images, places, channels]
        output = output if self.batch_first else output.transpose(0, 1)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        given = zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in given)

    def _heads(self, x: Tensor) -> Tensor:
        """Return `[images, heads, places, depth]`."""
        images_first = x if self.batch_first else x.transpose(0, 1)
        return images_first.reshape(*images_first.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, padding: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor | None:
        """Return what is added to the scores."""

        def added(hidden: Tensor) -> Tensor:
            if hidden.dtype != torch.bool:
                return hidden.to(like.dtype)
            return torch.zeros_like(hidden, dtype=like.dtype).masked_fill(hidden, float("-inf"))

        found = None if mask is None else added(mask)
        if found is not None and found.dim() == 3:  # one for each image and head
            found = found.unflatten(0, (-1, self.num_heads))
        if padding is None:
            return found
        hidden = added(padding).reshape(-1, 1, 1, padding.shape[-1])
        return hidden if found is None else found + hidden
