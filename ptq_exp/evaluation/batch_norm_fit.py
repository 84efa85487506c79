"""How well a network's batch norms fit a data set's images, presented in one way or another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ptq_exp.data.dataset import Dataset, fixed_shuffle
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.normalization import Constants, candidates
from ptq_exp.data.resizing import resized_tensor
from ptq_exp.evaluation.norm_statistics import Divergences, count_calls, divergences, trained_norms
from ptq_exp.quantization.hooks import BATCH

# Of the training images. The sampling noise in the first layer is 0.001 nats per channel with 512 images, and less in
# later layers. Fewer images are taken if they are larger than 64 pixels, so that a CPU needs seconds.
IMAGES, FEWEST_IMAGES, PIXELS = 512, 128, 2**21
SCREENED, FINALISTS = 128, 3  # images that choose the constants to be compared on all of them
CROP = 8  # training crops images padded by an eighth of their side (CIFAR: 4 of 32 pixels)
# Chosen on the five networks and the mistakes of `bench.consistency`, so other networks may need others. Right images
# gave at most 0.005 in every layer of three networks and 0.01 in a DenseNet. JPEG files for a network trained on
# lossless ones gave 0.002 in the first layer and at most 0.026 later, with jumps of up to 7.8 times all earlier layers,
# which may give a warning that mentions such images.
# The mistakes that change the accuracy most gave jumps of 8 to 1000 times.
FIRST, ANYWHERE = 0.015, 0.04
JUMP, JUMP_FLOOR = 6.0, 0.005
LITTLE = 0.02  # images of another kind may cause a jump of this size
ABRUPT = 3.0  # times the highest earlier divergence; less is a mistake that grows from layer to layer


@dataclass(frozen=True)
class Presentation:
    """How the images are given to the network."""

    constants: Constants
    padding: int = 0  # of the random crops that imitate those of training; 0: no crops and no flips
    side: int | None = None  # None: as the images are
    blue_first: bool = False


@dataclass(frozen=True)
class Fit:
    """The agreement of a network's batch norms with images presented in some way."""

    presentation: Presentation
    layers: Divergences

    @property
    def constants(self) -> Constants:
        """The normalization of the images."""
        return self.presentation.constants

    @property
    def augmented(self) -> bool:
        """Whether the images were cropped and flipped as in training."""
        return self.presentation.padding > 0

    @property
    def first(self) -> float:
        """The divergence at the first batch norm, which depends only on the images and their normalization."""
        return next(iter(self.layers.values()))

    @property
    def mean(self) -> float:
        """The mean divergence over all batch norms."""
        return sum(self.layers.values()) / len(self.layers)

    def misfit(self) -> tuple[str, bool] | None:
        """The first batch norm that does not fit, and whether its divergence exceeds all earlier ones abruptly.

        Different images affect all layers, the first slightly less than the last. Wrong wiring or misplaced weights
        cause a jump at one layer.
        """
        highest = 0.0
        for number, (name, divergence) in enumerate(self.layers.items()):
            allowed = min(ANYWHERE, max(JUMP_FLOOR, JUMP * highest)) if number else FIRST
            if divergence > allowed:
                return name, divergence > ABRUPT * highest
            highest = max(highest, divergence)
        return None


def _enough(fit: Fit) -> int:
    """The images for a look at all layers. What does not fit in the first one is far above the noise of few images."""
    return SCREENED if fit.first > FIRST else IMAGES


class BatchNormCheck:
    """Measures a network on one sample of a data set's training images, on their common device.

    The images are cropped and flipped as in the data set's recipe, by more pixels if they are large, and unchanged,
    because the training of the network is unknown. `norms` is empty if the network cannot be checked.
    """

    def __init__(self, model: nn.Module, dataset: Dataset):
        self.model, self.dataset = model, dataset
        images, self.recipe = dataset.train_images, dataset.recipe
        count = max(FEWEST_IMAGES, min(IMAGES, PIXELS // images[0, 0].numel()))
        self.images = images[fixed_shuffle(len(images))[:count].to(images.device)]
        self.paddings = sorted({0, *self._crops(images.shape[-1])})
        trained = trained_norms(model)
        (one,) = self._batches(Presentation(Constants("", dataset.mean, dataset.std)), 1)
        calls = count_calls(model, trained, one)
        self.norms = {name: trained[name] for name in calls}
        self.repeated = [name for name, count in calls.items() if count > 1]

    def _crops(self, side: int) -> set[int]:
        padding = self.recipe.crop_padding
        return {padding, side // CROP} if padding else set()

    def ranking(self, constants: list[Constants]) -> list[Fit]:
        """The fit of the most promising constants at the first batch norm (the best use of the images), best first."""
        screened = [self._best(Presentation(each), self.paddings, SCREENED) for each in constants]
        finalists = sorted(screened, key=lambda fit: fit.first)[:FINALISTS]
        fits = (self._best(fit.presentation, self.paddings, IMAGES) for fit in finalists)
        return sorted(fits, key=lambda fit: fit.first)

    def at_size(self, side: int, augmented: bool) -> Fit | None:
        """The best fit at the first batch norm with images resized to `side`; None if the network rejects them."""
        padding, images = side // CROP if augmented else 0, min(SCREENED, max(64, PIXELS // side**2))
        ways = (Presentation(constants, padding, side) for constants in candidates(self.dataset))
        try:
            return min((self._fit(way, images, first_only=True) for way in ways), key=lambda fit: fit.first)
        except RuntimeError:
            return None

    def colour_layer(self) -> str | None:
        """The name of the first convolution if it takes three channels."""
        convolutions = ((name, m) for name, m in self.model.named_modules() if isinstance(m, nn.Conv2d))
        name, first = next(convolutions, ("", None))
        return name if first is not None and first.in_channels == 3 else None

    def whole(self, fit: Fit) -> Fit:
        """The same fit at every batch norm; at those already measured, with the images of `fit`."""
        found = self._fit(fit.presentation, _enough(fit))
        return replace(found, layers=found.layers | fit.layers)

    def blue_first(self, fit: Fit) -> Fit:
        """The whole fit with the channels in the order blue, green, red."""
        return self._fit(replace(fit.presentation, blue_first=True), _enough(fit))

    @torch.no_grad()
    def predictions(self, constants: Constants) -> Tensor:
        """The predicted classes (N,) of the unaugmented images, normalized by `constants`."""
        outputs = (self.model(batch) for batch in self._batches(Presentation(constants), IMAGES))
        return torch.cat([(o if isinstance(o, Tensor) else o[0]).argmax(1) for o in outputs])

    def _best(self, how: Presentation, paddings: list[int], images: int) -> Fit:
        fits = (self._fit(replace(how, padding=padding), images, first_only=True) for padding in paddings)
        return min(fits, key=lambda fit: fit.first)

    def _fit(self, presentation: Presentation, images: int, first_only: bool = False) -> Fit:
        batches = self._batches(presentation, images)
        return Fit(presentation, divergences(self.model, self.norms, self.repeated, batches, first_only))

    def _batches(self, how: Presentation, count: int) -> Iterator[Tensor]:
        images = self.images[:count]
        images = images if how.side is None else resized_tensor(images.cpu(), how.side).to(images.device)
        if how.padding:
            nothing = torch.zeros(len(images), dtype=torch.long, device=images.device)
            images = next(TrainingLoader(images, nothing, len(images), how.padding, self.recipe.flip, 0).epoch(0))[0]
        normalize = Normalizer(how.constants.mean, how.constants.std, images.device)
        for batch in images.split(BATCH):
            ready = normalize(batch)
            yield ready.flip(1) if how.blue_first else ready
