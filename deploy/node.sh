#!/bin/sh
# node.sh CLIENT [key=value...]: one owner's node; further settings go to --node-config.
set -eu
client=$1; shift
exec fedlora node start --superlink gate:8000 --root-certificates /public/ca.crt \
  --key /key/node.key --port 9094 \
  --node-config "client=\"$client\" data=\"/data/rows.jsonl\" state-dir=\"/state\" threads=1 $*"
