#!/usr/bin/env bash
# Submit a song, wait for it, save it, with curl; python3 writes and reads the JSON.
#
#   examples/song.sh "slow waltz, C major" song.mp3
#
# SERINETTE_URL names another gateway than that of this machine, SERINETTE_API_KEY a key.
set -euo pipefail

prompt=${1:?first the prompt} file=${2:?then the file}
jobs=${SERINETTE_URL:-http://127.0.0.1:8019}/v1/jobs

call() {
  curl --silent --show-error --fail-with-body \
    ${SERINETTE_API_KEY:+--header "Authorization: Bearer $SERINETTE_API_KEY"} "$@"
}
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

spec=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1], "duration_s": 15}))' "$prompt")
# With a key a submit may be sent again when its response was lost: it stays one song.
key=$(python3 -c 'import uuid; print(uuid.uuid4())')
id=$(call "$jobs" --retry 5 --retry-connrefused --header "Idempotency-Key: $key" \
  --header "Content-Type: application/json" --data "$spec" | field id)

status=queued
while [[ $status == queued || $status == running ]]; do
  status=$(call "$jobs/$id" --header "Prefer: wait=30" | field status)  # responds when it has ended, or after 30 s
done
if [[ $status != succeeded ]]; then
  call "$jobs/$id" >&2
  exit 1
fi
call "$jobs/$id/audio" --location --output "$file"
