"""Where results are logged: the configuration group `tracking`."""

from dataclasses import dataclass
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.base.options import option


@dataclass
class TrackingOptions:
    """Group `tracking`. The files in `conf/tracking` contain only what they change."""

    enabled: bool = option(True, "false: nothing is logged to MLflow")
    uri: str | None = option(
        None,
        "any MLflow tracking URI; null: the environment's MLFLOW_TRACKING_URI, else sqlite:///<project root>/mlflow.db",
    )
    experiment: str = option("ptq_exp", "the experiment's name in MLflow")
    register: str | None = option(
        None, "model name in the MLflow registry; every quantized network becomes a version of this model; null: none"
    )

    tensorboard: str | None = option(None, "folder of TensorBoard's event files; null: none")

    def check(self) -> None:
        """Raise `UserError` for values that do not fit each other, and for a name that the registry refuses."""
        if not self.experiment.strip():
            raise UserError("tracking.experiment is empty. Give a name, for example tracking.experiment=ptq_exp.")
        if self.tensorboard is not None and not self.tensorboard.strip():
            raise UserError("tracking.tensorboard is empty. Give a folder, or null: tracking.tensorboard=null.")
        if self.uri and self.uri.endswith(".db") and "://" not in self.uri:
            path = Path(self.uri).expanduser().absolute()
            raise UserError(f"tracking.uri={self.uri} names a file without its kind: tracking.uri=sqlite:///{path}")
        if self.register is None:
            return
        if not self.enabled:
            raise UserError("tracking.register needs an MLflow store: leave tracking=none or tracking=tensorboard out.")
        if not self.register.strip() or set(self.register) & set("/:"):
            raise UserError(f"tracking.register={self.register!r}: a model's name has no slash and no colon.")
