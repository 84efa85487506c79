"""The images and their preprocessing: the configuration group `data`. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.base.options import option
from ptq_exp.base.paths import PROJECT_ROOT


@dataclass
class DataOptions:
    """Group `data`. The files in `conf/data` contain only what they change."""

    name: str = option("auto", "the file of ptq_exp/data that loads the images")
    root: str | None = option(
        None,
        "published data sets (CIFAR, SVHN, MNIST): the folder that contains the archives or the extracted files, "
        "null: <project root>/datasets; "
        "image_folder: the folder or archive of the images, required",
    )
    mean: list[float] | None = option(
        None, "mean of red, green and blue, or one number; null: the checkpoint's if it is known, else the data set's"
    )
    std: list[float] | None = option(None, "standard deviation of the channels; null: as for mean", above=0)
    resize: int | None = option(
        None,
        "side in pixels that the images are scaled to (bilinear with antialiasing), for every data set; null: no "
        "scaling, and all images of an image_folder must have the same size",
        at_least=1,
    )
    crop: int | None = option(
        None,
        "null: images are scaled to a square; else their shorter side is scaled to data.resize and the centre, a "
        "square of so many pixels, is cut out (ImageNet: data.resize=256 data.crop=224)",
        at_least=1,
    )
    skip_broken: bool = option(
        False, "image_folder, true: leave out images that cannot be read, and report how many; false: stop at the first"
    )
    labels: str | None = option(
        None,
        "image_folder: the table of the labels (CSV: name of the image, label), a path in data.root or on disk; null: "
        "the one table in data.root that fits images without class folders",
    )
    test_share: float = option(
        0.2,
        "image_folder without test images: the share of each class that is set aside as test images",
        above=0,
        below=1,
    )
    classes: list[str] | None = option(
        None,
        "image_folder: the class folders in the order of the network's outputs; null: as in classes.txt, else by name",
    )
    download: bool = option(True, "published data sets: download and verify the archives if they are missing")
    timeout: float = option(15.0, "seconds without a response or data after which a download is aborted", above=0)
    validation_images: int = option(
        0, "training images set aside to select the epoch (trainer.select=best_validation)", at_least=0
    )
    train_limit: int | None = option(None, "use only this many training images", at_least=1)
    test_limit: int | None = option(None, "use only this many test images", at_least=1)

    @property
    def folder(self) -> Path:
        """The folder in which published data sets are looked for and to which they are downloaded."""
        return Path(self.root).expanduser() if self.root else PROJECT_ROOT / "datasets"

    def for_channels(self, count: int) -> "DataOptions":
        """The same options with `mean` and `std`, where given, for images of `count` channels.

        Raises `UserError` if there are three numbers for one channel.
        """
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, count):
                raise UserError(
                    f"data.{key}={values} has {len(values)} numbers, but the network takes images of {count} channel"
                    f"{'s' if count > 1 else ''}."
                )
        mean, std = (
            values and (values if len(values) == count else values * count) for values in (self.mean, self.std)
        )
        return replace(self, mean=mean, std=std)

    def check(self) -> None:
        """Raise `UserError` for values that do not fit each other."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise UserError(f"data.{key}={values} needs three numbers (red, green, blue), or one for all channels.")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(f"data.mean={self.mean} and data.std={self.std} need the same count of numbers.")
        if self.crop is not None and (self.resize is None or self.crop > self.resize):
            raise UserError(
                f"data.crop={self.crop} is cut out of images whose shorter side is data.resize={_typed(self.resize)}, "
                f"so data.resize must be at least {self.crop}."
            )
        if self.labels is not None and self.name != "image_folder":
            raise UserError(f"data.labels has no effect with data={self.name}, whose images have their labels.")
        if self.classes is not None and not self.classes:
            raise UserError("data.classes is empty. Give the class folders in order, or null: data.classes=null.")
        if self.classes is not None and self.name != "image_folder":
            raise UserError(f"data.classes has no effect with data={self.name}, whose classes have a fixed order.")


def _typed(value: object) -> str:
    return "null" if value is None else str(value)
