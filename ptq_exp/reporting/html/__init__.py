"""One HTML page per sweep or job: table, figures, diagnosis, configuration, and the command that repeats it.

`python -m ptq_exp.report --uri <store> --parent <run>` builds it from MLflow alone.
"""

REPORT_FILE = "report.html"
