#!/bin/sh
# driver.sh [CONFIG.toml] [section.key=value ...]: submit a run to the superlink of this deployment.
# Every node takes part from the first round on, unless run.min_clients says otherwise.
set -eu
config=
case ${1-} in
  "" | *=*) ;;
  *) config=$1; shift ;;
esac
exec fedlora submit ${config:+"$config"} run.min_clients=4 run.dir=/results "$@" --to superlink
