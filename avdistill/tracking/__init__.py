"""Runs as MLflow shows them: written to journals on disk, brought to MLflow by a process of its own.

A suite is a hundred short processes, and importing MLflow takes each of them seconds. So a stage only appends lines
to a *journal*, and one *mirror* a suite, started by the first stage that finds none, sends them on and ends by itself:

    <suite.out>/.tracking/<journal>.jsonl       the events of a run, one a line; locked as long as the run goes on
    <suite.out>/.tracking/<journal>/            copies of its artifacts
    <suite.out>/.tracking/<journal>.sent.json   its run in MLflow and how far it is sent; alone remains at the end
    <suite.out>/.tracking/mirror.log            what the mirror had to say
    <suite.out>/.tracking/unreachable           there as long as MLflow cannot be reached

With the tracking server away nothing waits and nothing is lost: `python -m avdistill.tracking sync PARAMS...` sends the
rest. Sending again makes no doubles: a run is found by its tag `journal`, a model and its version, too, and everything
else that MLflow stores under it is keyed by content (a metric by name, step, time and value).

Environment: MLFLOW_TRACKING_URI (default: the SQLite database mlflow.db in the repository's root);
AV_TRACKING=off writes journals only. Passwords come from MLflow's own variables, such as MLFLOW_TRACKING_PASSWORD, and
are never written anywhere; one in the URI is left out wherever the URI is shown.
"""
