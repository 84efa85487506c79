"""One training step. On CUDA it is a captured graph, so that the GPU never waits for Python."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.machine import tf32
from ptq_exp.data.loader import Normalizer
from ptq_exp.training.fused import fuse

WARM_UP = 3  # eager passes before the capture, in which libraries allocate their workspaces


class TrainingStep:
    """Forward and backward pass on a batch, then the optimizer's step.

    `totals` (2,) holds the sums of the losses and of the correct predictions so far, on the device. ResNet-20's kernels
    take a few microseconds each, less than Python needs to launch them. On CUDA, the passes for the first batch's shape
    are therefore captured once and replayed. A batch of another shape (the last of an epoch) runs kernel by kernel.
    `precision` is fp32, tf32 (convolutions round their operands to 10 bits) or bf16 (autocast). The last two need CUDA:
    a CPU trains in fp32, since most CPUs emulate bf16 at a fraction of the speed. `fused` uses the kernels of
    `ptq_exp.training.fused` if they support the model. They take half a minute to compile.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Normalizer,
        optimizer: torch.optim.Optimizer,
        precision: str,
        fused: bool = False,
    ):
        self.model, self.normalize, self.optimizer, self.precision = model, normalize, optimizer, precision
        self.forward: Callable[[Tensor], Tensor] = (fused and fuse(model, precision)) or model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.totals = torch.zeros(2, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Train on uint8 `images` (B, 3, H, W) and their `labels` (B,)."""
        if images.is_cuda and self.graph is None:
            self._capture(images, labels)
        if self.graph is not None and images.shape == self.images.shape:
            self.images.copy_(images)
            self.labels.copy_(labels)
            self.graph.replay()
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient
        else:
            self._passes(images, labels)
        self.optimizer.step()

    def _passes(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        half = self.precision == "bf16" and self.device.type == "cuda"
        with tf32(self.precision == "tf32"):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                logits = self.forward(self.normalize(images))
            loss = F.cross_entropy(logits.float() if half else logits, labels)
            loss.backward()
        self.totals += torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.clone(), labels.clone()
        # The passes below change batch norm's running statistics and the totals, so these are restored afterwards.
        touched = [*self.model.buffers(), self.totals]
        before = [buffer.clone() for buffer in touched]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._passes(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # a thread may report the previous job
            self._passes(self.images, self.labels)
        self.gradients = [parameter.grad for parameter in self.parameters]
        for buffer, value in zip(touched, before, strict=True):
            buffer.copy_(value)
