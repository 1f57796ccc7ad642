#!/bin/sh
# Starts a worker whose state outlives its container: dvc.lock and DVC's cache lie in the volume of work/, the data also in a bucket.
# IP2P_DATA_URL names the bucket (s3://bucket/dvc); its keys and AWS_ENDPOINT_URL come from the environment.
set -eu
mkdir -p work
[ -e work/dvc.lock ] || echo "schema: '2.0'" > work/dvc.lock  # one that a kill left broken is mended by the flows
ln -sf work/dvc.lock dvc.lock
dvc config --local cache.dir work/cache
dvc remote add --local --force --default s3 "$IP2P_DATA_URL"
[ -z "${AWS_ENDPOINT_URL:-}" ] || dvc remote modify --local s3 endpointurl "$AWS_ENDPOINT_URL"
exec prefect worker start --pool ip2p --type process
