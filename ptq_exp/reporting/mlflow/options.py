"""Group `tracking`: where results are logged."""

from dataclasses import dataclass


@dataclass
class TrackingOptions:
    """Group `tracking`: where results are logged."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "ptq_exp"
    register: str | None = None
