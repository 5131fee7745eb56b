#!/bin/sh
# Start a worker of pool `cluster`: deploy/worker.sh [OPTIONS OF prefect worker start], in the environment of `make`.
# It runs one stage or point at a time, with all cores and GPUs of the machine, in a new clone in TMPDIR. On a machine
# without a GPU: deploy/worker.sh --work-queue cpu. Each worker has a name of its own, because the name of a dead one
# must not seem alive again.
set -eu
. deploy/cluster.env
exec prefect worker start --pool cluster --type process --limit 1 --name "$(hostname)-$$-$(date +%s)" "$@"
