"""Multi-head attention with projections that are layers of their own, so that they can be quantized."""

import math

import torch
from torch import Tensor, fx, nn

from ptq_exp.networks.graph import standard


class Attention(nn.Module):
    """The function of a `nn.MultiheadAttention` in evaluation mode (Vaswani et al. 2017, section 3.2).

    It takes query (N, L, E), key and value (N, S, E), or with the first two dimensions exchanged if `batch_first` is
    false, or without N. It returns the attended values, in the shape of the query, and the weights (N, L, S).
    """

    in_proj_bias = None  # keeps `nn.TransformerEncoderLayer` from a fused kernel that bypasses the layers

    def __init__(self, original: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.batch_first = original.num_heads, original.batch_first
        self.embed_dim, self._qkv_same_embed_dim = original.embed_dim, original._qkv_same_embed_dim
        if original.in_proj_weight is not None:
            weights = original.in_proj_weight.detach().chunk(3)
        else:
            weights = tuple(
                w.detach() for w in (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
            )
        biases = [None] * 3 if original.in_proj_bias is None else original.in_proj_bias.detach().chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        output = original.out_proj
        self.output = _linear(output.weight.detach(), None if output.bias is None else output.bias.detach())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # only a hint: the mask is given too
    ) -> tuple[Tensor, Tensor | None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, -2) for x in (query, key, value))
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.embed_dim // self.num_heads)
        if attn_mask is not None:
            scores = _masked(scores, attn_mask)
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask[..., None, None, :])
        weights = scores.softmax(-1)
        attended = self.output(torch.matmul(weights, v).transpose(-3, -2).flatten(-2))
        if not self.batch_first:
            attended = attended.transpose(0, -2)
        if not need_weights:
            return attended, None
        return attended, weights.mean(-3) if average_attn_weights else weights

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E) as (N, heads, L, E / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


def separate_attention(model: nn.Module) -> None:
    """Replace every `nn.MultiheadAttention` by an `Attention` with the same function, in place.

    Attention with appended keys (`bias_k`, `add_zero_attn`), and derived classes with their own forward function, stay.
    """
    made: dict[nn.Module, nn.Module] = {}  # a module may have several names
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.MultiheadAttention) and _usual(child):
                made[child] = made.get(child) or Attention(child).train(child.training)
                setattr(parent, name, made[child])


def _usual(module: nn.MultiheadAttention) -> bool:
    return (
        standard(module, nn.MultiheadAttention)
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


@fx.wrap  # its branches depend on the mask, which may be symbolic
def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (N, heads, L, S) of pairs that a boolean mask marks become minus infinity; other masks are added."""
    if mask.dim() == 3 and scores.dim() == 4:  # one mask for every image and head
        mask = mask.unflatten(0, (-1, scores.shape[1]))
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
