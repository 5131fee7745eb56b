"""Asynchronous MLflow tracking: stages write journals to disk, a background process sends them to MLflow.

A suite consists of about a hundred short processes, and importing MLflow takes seconds. A stage therefore only appends
to a *journal*. One *mirror* process per suite, started by the first stage that finds none, sends the journals to
MLflow and exits when idle:

    <suite.out>/.tracking/<journal>.jsonl       events of a run, one per line; locked while the run is active
    <suite.out>/.tracking/<journal>/            copies of its artifacts
    <suite.out>/.tracking/<journal>.sent.json   MLflow run id and byte offset sent so far; kept after the run
    <suite.out>/.tracking/mirror.log            log of the mirror
    <suite.out>/.tracking/unreachable           exists while MLflow is unreachable

While the tracking server is unreachable, stages do not wait and the journals stay on disk;
`python -m avdistill.tracking sync PARAMS...` sends them later. Sending is idempotent: runs, models and model versions
are looked up by their tag `journal`, and everything else in a run is keyed by content (a metric by name, step, time and
value).

Environment: MLFLOW_TRACKING_URI (default: the SQLite database mlflow.db in the repository's root); AV_TRACKING=off
writes journals only. Passwords are read from MLflow's own variables, such as MLFLOW_TRACKING_PASSWORD, and never
written; a password in the URI is removed wherever the URI is shown.
"""
