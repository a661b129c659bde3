#!/bin/sh
# register.sh [CLIENT=]KEY.pub...: tell the superlink whose nodes may join. What it knows already is
# left. With CLIENT= in front and $FEDLORA_CLIENTS set, that file gets a line which says that this
# client is the node of this key alone: runs then admit nobody who is not in it.
set -eu
for given in "$@"; do
  key=${given#*=}
  name=$(basename "$key" .pub)
  if said=$(flwr supernode register "$key" superlink 2>&1); then
    echo "$name is registered"
  else
    case $said in
      *"already in use"*) echo "$name was registered before" ;;
      *) echo "$said" >&2; exit 1 ;;
    esac
  fi
  case $given in
    *=*)
      [ "${FEDLORA_CLIENTS-}" ] || { echo "FEDLORA_CLIENTS is not set" >&2; exit 1; }
      client=${given%%=*}
      touch "$FEDLORA_CLIENTS"
      grep -v "^\"$client\" = " "$FEDLORA_CLIENTS" >"$FEDLORA_CLIENTS.new" || true
      echo "\"$client\" = \"$(cut -d ' ' -f 1,2 "$key")\"" >>"$FEDLORA_CLIENTS.new"
      mv "$FEDLORA_CLIENTS.new" "$FEDLORA_CLIENTS"
      echo "client $client is the node of $name"
      ;;
  esac
done
