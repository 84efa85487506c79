"""The notebook's loops as the baseline of the benchmarks, with the notebook's data loading.

Two loader processes convert, augment and normalize PIL images one by one. The batch size is 160. Every step waits for
the device, because it reads the loss and the number of correct predictions.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BATCH, WORKERS = 160, 2


class PilImages(Dataset):
    """Like torchvision's CIFAR10: makes PIL images from an array and transforms them. `images`: uint8 (N, 3, H, W)."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool):
        self.images, self.labels = images.cpu(), labels.tolist()
        random = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4)] if augment else []
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(to_pil_image(self.images[index])), self.labels[index]


def loader(images: Tensor, labels: Tensor, train: bool) -> DataLoader:
    """The notebook's loader."""
    return DataLoader(PilImages(images, labels, train), BATCH, shuffle=train, num_workers=WORKERS, pin_memory=True)


def train_epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """One epoch of the notebook's training loop."""
    model.train()
    criterion, running, correct = nn.CrossEntropyLoss(), 0.0, 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        correct += (outputs.argmax(1) == labels).sum().item()


@torch.no_grad()
def validate(model: nn.Module, batches: DataLoader, device: torch.device) -> Tensor:
    """The notebook's validation loop. Returns the predictions (N,)."""
    model.eval()
    criterion, running, predictions = nn.CrossEntropyLoss(), 0.0, []
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        outputs = model(images)
        running += criterion(outputs, labels).item()
        predictions.append(outputs.argmax(1).cpu())
    return torch.cat(predictions)
