#!/bin/sh
# A worker of pool `points`: deploy/worker.sh [OPTIONS OF prefect worker start], in the environment of `make`.
# One point at a time: it has the machine's cores and GPUs to itself. Each is cloned to a folder of its own in TMPDIR.
set -eu
. deploy/cluster.env
exec prefect worker start --pool points --type process --limit 1 "$@"
