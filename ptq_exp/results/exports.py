"""What is known of an exported file."""

from dataclasses import dataclass

BATCHES = (1, 64)  # numbers of images at a time for which the speed is measured


@dataclass(frozen=True)
class ExportResult:
    """A file, and how the network in it did in its own runtime. What was not measured is None.

    Agreement and top-1 are in percent of the test images, and the speeds in images per second, with one and with 64
    images at a time. `float_` are the speeds of the float network in the same runtime.
    """

    format: str  # as in `export=[onnx]`
    metric: str  # the first part of the metrics' names
    runtime: str
    file: str  # in the artifacts
    size_bytes: int | None = None
    agreement: float | None = None  # the simulation's prediction
    top1: float | None = None
    speed_1: float | None = None
    speed_64: float | None = None
    float_speed_1: float | None = None
    float_speed_64: float | None = None
    largest_difference: float | None = None  # of a logit, from the simulation, on the first images
    note: str = ""  # why something is missing
    failed: bool = False  # the file does not do what was simulated, or could not be written

    @property
    def place(self) -> str:
        """The file and its runtime, or the format if there is no file."""
        return f"{self.file} in {self.runtime}" if self.file else f"export={self.format}"

    def __str__(self) -> str:
        if self.agreement is None:
            return f"{self.place}: {self.note}"
        return (
            f"{self.place}: {self.agreement:.2f} % of the predictions are those of the simulation, "
            f"top-1 {self.top1:.2f} %{', ' + self.note if self.note else ''}"
        )

    def metrics(self) -> dict[str, float]:
        """`onnx_agreement` and so on."""
        values = {
            "agreement": self.agreement, "top1": self.top1, "bytes": self.size_bytes,
            "images_per_second_1": self.speed_1, "images_per_second_64": self.speed_64,
        }  # fmt: skip
        return {f"{self.metric}_{name}": float(value) for name, value in values.items() if value is not None}
