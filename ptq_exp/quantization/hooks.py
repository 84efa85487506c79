"""Forward passes that observe the inputs and outputs of some of a network's modules."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

BATCH = 256  # images at a time; only memory depends on it

Inputs = tuple[Tensor, ...]


class StopForward(Exception):
    """Ends a forward pass early, if the rest is not needed."""


@contextlib.contextmanager
def watching(
    model: nn.Module,
    names: Iterable[str],
    inputs: Callable[[str, Inputs], None] | None = None,
    outputs: Callable[[str, Inputs, Tensor], None] | None = None,
) -> Iterator[Callable[[Tensor], None]]:
    """Yields a function that sends a batch of images through `model`.

    For every call of a module in `names`, `inputs(name, inputs)` is called before it runs and
    `outputs(name, inputs, output)` afterwards. Either may raise `StopForward`, which ends the pass of the batch.
    """

    def before(name: str) -> Callable[[nn.Module, Inputs, dict[str, Tensor]], None]:
        return lambda _, given, named: inputs(name, _tensors(given, named)) if inputs else None

    def after(name: str) -> Callable[[nn.Module, Inputs, dict[str, Tensor], Tensor], None]:
        return lambda _, given, named, output: outputs(name, _tensors(given, named), output) if outputs else None

    def forward(batch: Tensor) -> None:
        with contextlib.suppress(StopForward):
            model(batch)

    handles = []
    for name in names:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(before(name), with_kwargs=True)] if inputs else []
        handles += [module.register_forward_hook(after(name), with_kwargs=True)] if outputs else []
    try:
        yield forward
    finally:
        for handle in handles:
            handle.remove()


def _tensors(given: Inputs, named: dict[str, Tensor]) -> Inputs:
    """The tensors among a module's inputs, whether they were given by position or by name."""
    return tuple(x for x in (*given, *named.values()) if isinstance(x, Tensor))


def prepared(model: nn.Module, images: Tensor) -> Tensor:
    """The images as the pre-hooks of `model` change them, for calls of its parts."""
    for hook in model._forward_pre_hooks.values():
        changed = hook(model, (images,))
        if changed is not None:  # it returns nothing, the images, or a tuple of them
            (images,) = changed if isinstance(changed, tuple) else (changed,)
    return images
