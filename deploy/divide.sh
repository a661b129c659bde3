#!/bin/sh
# divide.sh DIR NODE=CLIENT...: put each client's rows of the bundled data where its node finds them,
# DIR/NODE/rows.jsonl. Rows that are there already stay.
set -eu
to=$1; shift
aside=$(mktemp -d)
python -m simulations.divide "$aside"
for pair in "$@"; do
  [ -e "$to/${pair%=*}/rows.jsonl" ] || cp "$aside/${pair#*=}.jsonl" "$to/${pair%=*}/rows.jsonl"
done
rm -r "$aside"
