#!/bin/sh
# register.sh KEY.pub...: tell the superlink whose nodes may join. What it knows already is left.
set -eu
for key in "$@"; do
  name=$(basename "$key" .pub)
  if said=$(flwr supernode register "$key" superlink 2>&1); then
    echo "$name is registered"
  else
    case $said in
      *"already in use"*) echo "$name was registered before" ;;
      *) echo "$said" >&2; exit 1 ;;
    esac
  fi
done
