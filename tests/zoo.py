"""Small networks with the operations that image classifiers are made of. All take images (N, 3, 8, 8)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8


def conv(channels: int = WIDTH, size: int = 3, given: int = WIDTH, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(given, channels, size, padding=options.get("dilation", 1) * (size // 2), **options)


def norm_and(activation: nn.Module) -> list[nn.Module]:
    return [nn.BatchNorm2d(WIDTH), activation]


class Body(nn.Module):
    """A block with layers `a` and `b`. `compute` says how its output follows from its input."""

    def __init__(self, compute: Callable[[Any, Tensor], Any], **modules: nn.Module):
        super().__init__()
        self.compute = compute
        self.a, self.b = conv(), conv()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


class Net(nn.Module):
    """A convolution, blocks, and a classifier, which is registered first."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.head = nn.Linear(WIDTH, 5)
        self.stem = nn.Sequential(conv(given=3), *norm_and(nn.ReLU(inplace=True)))
        self.body = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits


class Functional(nn.Module):
    """Two residual blocks written in one forward function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.head = conv(given=3), conv(), conv(), conv(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(x + self.c(x))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Pair(Net):
    """Its output is a tuple, and it calls layers with keywords."""

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x))
        return self.head(input=x.mean((2, 3))), x


class Viewed(Net):
    """`view` needs PyTorch's default memory format."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.body(self.stem(x)), 1)
        logits: Tensor = self.head(x.contiguous().view(x.size(0), -1))
        return logits


def shuffled(m: Any, x: Tensor) -> Tensor:
    """A unit of ShuffleNet v2."""
    kept, changed = x.chunk(2, dim=1)
    x = torch.cat([kept, m.side(changed)], dim=1)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def dense(m: Any, x: Tensor) -> Tensor:
    found = [x]
    for layer in (m.a, m.wide):
        found.append(layer(torch.cat(found, 1)))
    return m.last(torch.cat(found, 1))  # type: ignore[no-any-return]


def tokens(m: Any, x: Tensor) -> Tensor:
    """A transformer block on pixels."""
    h, w = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    y = m.norm(x)
    x = x + m.attention(y, y, y, need_weights=False)[0]
    x = x + m.second(F.gelu(m.first(m.norm2(x))))
    return x.transpose(1, 2).unflatten(2, (h, w))


def in_place(m: Any, x: Tensor) -> Tensor:
    """A pre-activation block whose first operation overwrites its input."""
    x = F.relu(x, inplace=True)
    y = m.b(F.relu(m.a(x), inplace=True))
    y += x
    return y


def gate(m: Any, x: Tensor) -> Tensor:
    y = m.b(x)
    return y * torch.sigmoid(m.up(F.silu(m.down(F.adaptive_avg_pool2d(y, 1)))))


def twice(m: Any, x: Tensor) -> Tensor:
    x = x + m.b(F.relu(m.a(x)))
    return x + m.b(F.relu(m.a(x)))


def odd_operands(m: Any, x: Tensor) -> Tensor:
    """Sources that are used twice, numbers on either side, a boolean mask."""
    y = torch.cat([m.a(x), m.a(x)], 1)[:, ::2] * 0.5 + 1
    y = torch.where(x > 0.5, y, 1 - y)
    return m.b(y * y / 6 - x) + 1 / (1 + y * y)


def modules(**given: nn.Module) -> dict[str, nn.Module]:
    return given


def inverted() -> nn.Module:
    return nn.Sequential(conv(size=1), *norm_and(nn.ReLU6()), conv(groups=WIDTH), *norm_and(nn.Hardswish()), conv())


def attention() -> dict[str, nn.Module]:
    return modules(
        norm=nn.LayerNorm(WIDTH), attention=nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        norm2=nn.LayerNorm(WIDTH), first=nn.Linear(WIDTH, 12), second=nn.Linear(12, WIDTH),
    )  # fmt: skip


RESIDUAL = lambda m, x: F.relu(x + m.b(F.relu(m.a(x))))  # noqa: E731
ZOO: dict[str, Callable[[], nn.Module]] = {
    "post-activation": lambda: Net(Body(RESIDUAL), Body(RESIDUAL)),
    "pre-activation": lambda: Net(Body(lambda m, x: x + m.b(F.relu(m.n(m.a(F.relu(x))))), n=nn.BatchNorm2d(WIDTH))),
    "bottleneck": lambda: Net(Body(lambda m, x: F.relu(m.b(m.c(m.a(x))) + m.s(x)), c=conv(), s=conv(size=1))),
    "inverted residual": lambda: Net(Body(lambda m, x: x + m.b(m.inner(m.a(x))), inner=inverted())),
    "depthwise separable": lambda: Net(conv(groups=WIDTH), *norm_and(nn.SiLU(inplace=True)), conv(size=1)),
    "squeeze and excitation": lambda: Net(
        Body(lambda m, x: x + gate(m, m.a(x)), down=conv(4, 1), up=conv(size=1, given=4))
    ),
    "gate alone": lambda: Net(Body(gate, down=conv(4, 1), up=conv(size=1, given=4))),
    "channel shuffle": lambda: Net(Body(shuffled, side=conv(4, given=4))),
    "dense": lambda: Net(Body(dense, wide=conv(given=16), last=conv(given=24))),
    "grouped and dilated": lambda: Net(Body(lambda m, x: x + m.g(m.a(x)), g=conv(groups=2, dilation=2)), nn.Dropout()),
    "attention": lambda: Net(Body(tokens, **attention())),
    "in place": lambda: Net(conv(), Body(in_place), Body(in_place)),
    "shared layers": lambda: Net(Body(twice)),
    "block called twice": lambda: Net(*[Body(RESIDUAL)] * 2),
    "odd operands": lambda: Net(Body(odd_operands)),
    "leaky": lambda: Net(Body(lambda m, x: F.leaky_relu(x + m.b(F.leaky_relu(m.a(x)))))),
    "one function": Functional,
    "tuple and keywords": lambda: Pair(Body(RESIDUAL)),
    "view": lambda: Viewed(Body(RESIDUAL)),
}


def build(name: str) -> nn.Module:
    """The network called `name`, with weights and batch-norm statistics that are not the identity."""
    torch.manual_seed(0)
    model = ZOO[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
