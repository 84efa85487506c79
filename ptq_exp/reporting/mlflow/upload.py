"""From a finished job's folder into the MLflow store: at once, or later where the store was not there."""

from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.reporting import mlflow as tracking
from ptq_exp.reporting.mlflow.registry import register
from ptq_exp.results.files import RESULTS_FILE, read_record, write_record


def upload(folder: Path, run: "tracking.Run | None" = None, uri: str | None = None, parent: str | None = None) -> None:
    """Log what `folder` holds, end its run as FINISHED, and note in the folder that it is done.

    Doing it again changes nothing; doing it after an interruption adds what is missing. `run` is the job's run where it
    is open; `uri` and `parent` replace the store and the sweep that the job was meant for. Raises `UserError` where the
    store cannot be used.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} holds no finished job: there is no complete {RESULTS_FILE}.")
    if record["uploaded"]:
        return
    if run is None or run.client is None:
        about = record["run"]
        config = tracking.settings_of(about, uri)
        belongs_to = parent or (about and about["parent"])
        run = tracking.start(config, about["name"] if about else "", belongs_to, record["job"], record["run_id"],
                             record.get("started"))  # fmt: skip
    if run.client is not None:
        record["run_id"] = run.run_id
        points = [(step, metrics) for step, metrics in record["points"]]
        run.log_series(points, record["params"], record["tags"])
        run.log_folder(folder / "artifacts")
        run.log_file(folder / RESULTS_FILE)
        if record.get("dataset"):  # older records have none
            run.log_input(record["dataset"])
        if record.get("register"):
            register(run, record["register"], folder / "artifacts", record["rows"])
        run.end(ended=record.get("ended"))  # records of older versions do not say
    write_record(folder, record | {"uploaded": True})  # last: whatever is killed before is done again
