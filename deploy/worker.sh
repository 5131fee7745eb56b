#!/bin/sh
# Start a worker of pool `points`: deploy/worker.sh [OPTIONS OF prefect worker start], in the environment of `make`.
# It runs one point at a time, with all cores and GPUs of the machine, in a new clone in TMPDIR.
set -eu
. deploy/cluster.env
exec prefect worker start --pool points --type process --limit 1 "$@"
