"""The images and their preprocessing: the configuration group `data`. Imports no torch."""

from dataclasses import dataclass
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
        "CIFAR: the folder that contains the archive or the extracted folder, null: <project root>/datasets; "
        "image_folder: the folder or archive of the images, required",
    )
    mean: list[float] | None = option(
        None, "mean of red, green and blue; null: the checkpoint's if it is known, else the data set's"
    )
    std: list[float] | None = option(None, "standard deviation of red, green and blue; null: as for mean", above=0)
    resize: int | None = option(
        None,
        "image_folder: side in pixels that images are scaled to; null: no scaling, all images must have the same size",
        at_least=1,
    )
    skip_broken: bool = option(
        False, "image_folder, true: leave out images that cannot be read, and report how many; false: stop at the first"
    )
    classes: list[str] | None = option(
        None,
        "image_folder: the class folders in the order of the network's outputs; null: as in classes.txt, else by name",
    )
    download: bool = option(True, "CIFAR: download and verify the archive if it is missing")
    timeout: float = option(15.0, "seconds without a response or data after which a download is aborted", above=0)
    validation_images: int = option(
        0, "training images set aside to select the epoch (trainer.select=best_validation)", at_least=0
    )
    train_limit: int | None = option(None, "use only this many training images", at_least=1)
    test_limit: int | None = option(None, "use only this many test images", at_least=1)

    @property
    def folder(self) -> Path:
        """The folder in which CIFAR-10 and CIFAR-100 are looked for and to which they are downloaded."""
        return Path(self.root).expanduser() if self.root else PROJECT_ROOT / "datasets"

    def check(self) -> None:
        """Raise `UserError` for values that do not fit each other."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != 3:
                raise UserError(f"data.{key}={values} needs three numbers: red, green, blue.")
        if self.classes is not None and self.name != "image_folder":
            raise UserError(f"data.classes has no effect with data={self.name}, whose classes have a fixed order.")
