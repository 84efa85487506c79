"""Attention with projections of its own: the function of torch's, masks, layouts, and transformer layers around it."""

from typing import Any

import pytest
import torch
from conftest import quantize
from torch import Tensor, nn

from ptq_exp.networks.graph import Graph, blocks
from ptq_exp.quantization.attention import Attention, separate_attention
from ptq_exp.quantization.coverage import float_tensors, limits
from ptq_exp.quantization.layers import OPAQUE, quantized_layers
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.traced import Traced

WIDTH, HEADS, LENGTH, BATCH = 8, 2, 5, 3
EIGHT = QuantConfig(
    sign_bit="included", grid="asymmetric", alpha_rule="max", granularity="channel", layers="all", act_bits=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


def attention(**options: Any) -> tuple[nn.MultiheadAttention, nn.Module]:
    """Torch's attention with weights and biases that are not zero, and the separated one."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.MultiheadAttention(WIDTH, HEADS, **options)}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    separated = plain_copy(model)
    return model["a"], separated.get_submodule("a")  # type: ignore[return-value]


def tensors(batch_first: bool, batched: bool, widths: tuple[int, int, int] = (WIDTH,) * 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(BATCH, length, width) for length, width in zip((4, LENGTH, LENGTH), widths, strict=True)]
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    if not batched:
        return [x[0] for x in found]
    return found if batch_first else [x.transpose(0, 1) for x in found]


CAUSAL = torch.ones(4, LENGTH).triu(2)
PADDING = torch.tensor([[False] * 3 + [True] * 2, [False] * 5, [False] * 4 + [True]])
EACH = torch.randn(BATCH * HEADS, 4, LENGTH, generator=torch.Generator().manual_seed(2))
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "boolean mask": {"attn_mask": CAUSAL.bool()},
    "added mask": {"attn_mask": CAUSAL * -3.0},
    "mask of every head": {"attn_mask": EACH},
    "boolean mask of every head": {"attn_mask": EACH > 1},
    "padding": {"key_padding_mask": PADDING},
    "added padding": {"key_padding_mask": torch.zeros(BATCH, LENGTH).masked_fill(PADDING, -torch.inf)},
    "mask and padding": {"attn_mask": CAUSAL.bool(), "key_padding_mask": PADDING},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_it_computes_what_torch_computes(call: str, batch_first: bool, batched: bool) -> None:
    given = dict(CALLS[call])
    if not batched:
        given = {
            name: x[:HEADS] if name == "attn_mask" and x.dim() == 3 else x[0] if name == "key_padding_mask" else x
            for name, x in ((name, x) for name, x in given.items())
        }
    original, separated = attention(batch_first=batch_first)
    x = tensors(batch_first, batched)
    wanted, found = original(*x, **given), separated(*x, **given)
    assert torch.allclose(found[0], wanted[0], atol=1e-5)
    assert (found[1] is None) == (wanted[1] is None)
    assert wanted[1] is None or torch.allclose(found[1], wanted[1], atol=1e-5)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 3}, {"dropout": 0.5}])
@torch.no_grad()
def test_other_widths_and_no_biases(options: dict[str, Any]) -> None:
    original, separated = attention(batch_first=True, **options)
    x = tensors(True, True, (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH)))
    assert isinstance(separated, Attention)
    assert torch.allclose(separated(*x)[0], original(*x)[0], atol=1e-5)


class Changed(nn.MultiheadAttention):
    """A derived class with a forward function of its own."""

    def forward(self, *given: Any, **named: Any) -> Any:
        return 2 * super().forward(*given, **named)[0], None


def test_only_the_usual_attention_is_separated() -> None:
    kinds = [
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True),
        Changed(WIDTH, HEADS),
    ]
    model = nn.ModuleList(kinds)
    separate_attention(model)
    assert list(model) == kinds


def test_an_attention_with_several_names_stays_one_module() -> None:
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.ModuleDict({"d": shared})})
    separate_attention(model)
    assert model["a"] is model["b"]
    assert model["a"] is model.get_submodule("c.d")
    assert isinstance(model["a"], Attention)


class Tokens(nn.Module):
    """A classifier of patches: an encoder between a convolution and a linear layer."""

    def __init__(self, encoder: nn.Module, masked: bool = False):
        super().__init__()
        self.patches, self.encoder, self.head = nn.Conv2d(3, WIDTH, 2, 2), encoder, nn.Linear(WIDTH, 4)
        self.register_buffer("mask", torch.ones(16, 16).triu(1).bool() if masked else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.encoder(x) if self.mask is None else self.encoder(x, self.mask)
        logits: Tensor = self.head(x.mean(1))
        return logits


class Masked(nn.Module):
    """A residual attention with an optional mask."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        attended: Tensor = self.attention(query=x, key=x, value=x, attn_mask=mask, need_weights=False)[0]
        return x + attended


def pictures() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_the_fast_path_of_a_transformer_layer_does_not_bypass_the_layers(batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=batch_first, norm_first=norm_first)
    model = Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    x = pictures()
    assert torch.allclose(plain_copy(model)(x), model(x), atol=1e-5)
    quantized, report = quantize(model, EIGHT, 8, x)
    layers = quantized_layers(quantized)
    assert len(layers) == 2 + 2 * 6
    called: set[str] = set()
    for name, module in layers.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    error = (quantized(x) - model(x)).norm() / model(x).norm()
    assert called == set(layers)
    assert 0 < error < 0.05
    assert all(row.act_bits == 8 for row in report.layers if row.layer != "patches")
    (sentence,) = limits(Traced(model), EIGHT.__class__(rounding="block"))
    assert sentence.startswith("encoder cannot be traced: ")
    assert "block by block" in sentence


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_attention_is_a_block_of_four_layers_also_with_a_mask(masked: bool) -> None:
    torch.manual_seed(0)
    model, x = Tokens(Masked(), masked).eval(), pictures()
    everything = EIGHT.__class__(**EIGHT.__dict__ | {"act_coverage": "all", "act_zero_point": True})
    quantized, _ = quantize(model, everything, 8, x)
    assert (quantized(x) - model(x)).norm() < 0.05 * model(x).norm()
    (block,) = blocks(Graph(quantized, OPAQUE))
    assert [layer.rpartition(".")[2] for layer in block.layers] == ["query", "key", "value", "output"]
    assert float_tensors(quantized, everything) == (100.0, {})
    assert limits(Traced(plain_copy(model)), everything) == []


def test_what_stays_float_in_an_unusual_attention_is_named() -> None:
    model = Tokens(Masked(add_bias_kv=True)).eval()
    quantized, _ = quantize(model, EIGHT, 8, pictures())
    share, reasons = float_tensors(quantized, EIGHT)
    assert 0 < share < 100
    assert reasons["encoder.attention.in_proj_weight"] == "MultiheadAttention is not supported"
    assert "encoder.attention.out_proj.weight" not in reasons
