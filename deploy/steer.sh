#!/bin/sh
# steer.sh COMMAND...: run it with the connection `superlink` in Flower's configuration. Flower also
# writes into that folder, so it is a new one.
set -eu
FLWR_HOME=$(mktemp -d)
export FLWR_HOME
cp /src/deploy/connection.toml "$FLWR_HOME/config.toml"
exec "$@"
