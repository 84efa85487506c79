"""Keys on the command line that the other keys make useless."""

from collections.abc import Callable

from ptq_exp.config.schema import Config
from ptq_exp.quantization.idle import idle

LOCAL = ("digits", "image_folder")  # data sets that are not downloaded
# Keys or groups, when they have an effect, and what makes them idle otherwise.
_NEEDS: list[tuple[tuple[str, ...], Callable[[Config], object], str]] = [
    (
        ("trainer", "optimizer", "scheduler"), lambda config: config.checkpoint in ("auto", "train"),
        "with a checkpoint, which is not trained",
    ),
    (("data.root",), lambda config: config.data.name != "digits", "with data=digits, which scikit-learn contains"),
    (("data.download",), lambda config: config.data.name not in LOCAL, "on a folder of images"),
    (
        ("data.timeout",), lambda config: config.data.name not in LOCAL or "://" in config.checkpoint,
        "where nothing is downloaded",
    ),
    (
        ("data.test_share", "data.skip_broken"), lambda config: config.data.name == "image_folder",
        "without data=image_folder",
    ),
    (("tracking.uri", "tracking.experiment"), lambda config: config.tracking.enabled, "without tracking=mlflow"),
    (("search.bits",), lambda config: "weights" in config.search.over, "without weights in search.over"),
    (("search.act_bits",), lambda config: "activations" in config.search.over, "without activations in search.over"),
]  # fmt: skip


def without_effect(config: Config) -> list[str]:
    """One sentence for each key on the command line that has no effect."""
    typed = [key for key, value in config.typed.items() if value != "null"]
    quant = [key.removeprefix("quant.") for key in typed if key.startswith("quant.")]
    sentences = [] if config.search.name else idle(config.quant, quant)  # the trials of a search change the method
    for key in typed:
        for keys, active, why in _NEEDS:
            if (key in keys or key.partition(".")[0] in keys) and not active(config):
                sentences.append(f"{key} has no effect {why}.")
    return list(dict.fromkeys(sentences))
