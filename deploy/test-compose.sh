#!/usr/bin/env bash
# Bring docker-compose.yml up, run the checks of tests/compose against it, take it down again.
#
# A running Docker engine with the Compose plugin is used where there is one, under a project name
# of its own. Without one, on Debian 12 as root, deploy/with-engine.sh brings one up for the time.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! { docker info && docker compose version; } >/dev/null 2>&1; then
  [ -z "${BUILD_NETWORK-}" ] || { echo "error: the engine that was started has gone" >&2; exit 1; }
  if [ "$(id -u)" = 0 ] && grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then
    exec deploy/with-engine.sh "$0"
  fi
  echo "error: this needs a running Docker engine with the Compose plugin, or root on Debian 12" >&2
  exit 1
fi

say() { printf '[%4ss] %s\n' "$SECONDS" "$*"; }

export COMPOSE_PROJECT_NAME=fedlora-test-$$ FEDLORA_PORT= FEDLORA_CONTROL_PORT= # any free ports
export COMPOSE="docker compose --progress quiet"

take_down() {
  local code=$?
  trap - EXIT INT TERM
  [ "$code" = 0 ] || $COMPOSE logs --no-color --tail 40 || true
  $COMPOSE --profile '*' down --volumes --remove-orphans --timeout 3 >/dev/null 2>&1 || true
  exit "$code"
}
trap take_down EXIT
trap 'exit 130' INT TERM

$COMPOSE build
say "built"
$COMPOSE up --detach --wait --wait-timeout 300
say "up"
.venv/bin/pytest -q -p no:cacheprovider --override-ini addopts=--import-mode=importlib tests/compose
say "checked"
