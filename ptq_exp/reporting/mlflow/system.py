"""MLflow's system metrics during a training: load of processor, memory, disk, network and GPU."""

import contextlib
import logging
import threading
from collections.abc import Iterator

PATIENCE_SECONDS = 5.0  # for the last sample; if the store does not respond, the job continues


@contextlib.contextmanager
def sampled(run_id: str, uri: str) -> Iterator[None]:
    """Log a sample to the run every ten seconds, from a separate thread that ends with the block.

    The environment variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the interval (seconds). If the store
    becomes unreachable, only the sampling ends. NVIDIA GPUs are included if the package nvidia-ml-py is installed.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # start and stop messages are of no interest
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        end = threading.Thread(target=monitor.finish, daemon=True)
        end.start()
        end.join(PATIENCE_SECONDS)
