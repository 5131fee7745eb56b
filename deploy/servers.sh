#!/bin/sh
# Start the servers of Prefect and MLflow for several people: deploy/servers.sh, in the environment of `make`. Ctrl-C
# stops both.
set -eu
. deploy/cluster.env
trap 'kill 0' EXIT
trap 'exit 130' INT TERM
prefect server start --host "$BIND_ADDRESS" --port 4200 &
mlflow server --app-name basic-auth --host "$BIND_ADDRESS" --port 5000 --allowed-hosts "$BIND_ADDRESS:5000" \
    --backend-store-uri "$MLFLOW_DATABASE" --artifacts-destination /srv/avdistill/mlartifacts &
wait
