"""Load of processor, memory, disk, network and GPU while a network is trained: MLflow's own system metrics."""

import contextlib
import logging
import threading
from collections.abc import Iterator

PATIENCE_SECONDS = 5.0  # for the last sample: where the store does not answer, the job goes on


@contextlib.contextmanager
def sampled(run_id: str, uri: str) -> Iterator[None]:
    """Log a sample to the run every ten seconds, from a thread of its own, which ends with the block.

    The environment's MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the seconds. A store that goes away only ends the
    sampling. NVIDIA GPUs are seen where the package nvidia-ml-py is installed.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # when it starts and stops is not news
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        end = threading.Thread(target=monitor.finish, daemon=True)
        end.start()
        end.join(PATIENCE_SECONDS)
