#!/usr/bin/env bash
# with-engine.sh COMMAND…: run COMMAND with a Docker engine of its own, and take the engine down.
#
# For a Debian 12 machine that has no engine and reaches no image registry, but Debian's packages
# and PyPI. Needs root. COMMAND sees DOCKER_HOST, DOCKER_CONFIG and BUILD_NETWORK=host (the engine
# leaves the machine's firewall and routes alone, so that a build has no other way out).
# Everything is in one scratch folder, some GB, which is removed at the end.
# The exit code is that of COMMAND.
set -euo pipefail

scratch=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-engine.XXXXXX")
export DOCKER_HOST=unix://$scratch/docker.sock DOCKER_CONFIG=$scratch/config BUILD_NETWORK=host
export DEBIAN_FRONTEND=noninteractive
engine= # the pid of dockerd, once it runs

say() { printf '[%4ss] %s\n' "$SECONDS" "$*"; }

# Ends dockerd, which ends containerd and the containers, and removes what they had mounted.
take_down() {
  local code=$?
  trap - EXIT INT TERM
  set +e
  if [ -n "$engine" ]; then
    docker ps -q | xargs -r docker kill >/dev/null 2>&1
    kill "$engine" 2>/dev/null
    timeout 60 tail --pid="$engine" -f /dev/null
  fi
  awk -v at="$scratch/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
  rm -rf --one-file-system "$scratch"
  say "the engine is down"
  exit "$code"
}
trap take_down EXIT
trap 'exit 130' INT TERM

apt() { apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }

# Runs a command whose output matters only when it fails.
quietly() { "$@" >"$scratch/output" 2>&1 || { cat "$scratch/output" >&2; return 1; }; }

packages() {
  quietly apt update
  command -v dockerd mmdebstrap iptables >/dev/null ||
    quietly apt install -y --no-install-recommends docker.io iptables mmdebstrap
}

# Debian 12 has no Compose plugin. That of Debian 13 is one static binary: it is unpacked from its
# package into the scratch folder, and apt's own lists stay those of Debian 12.
compose_plugin() {
  local next=$scratch/trixie plugins=$DOCKER_CONFIG/cli-plugins
  mkdir -p "$next/lists/partial" "$next/cache" "$plugins"
  sed -e 's/bookworm-updates//' -e 's/bookworm/trixie/' -e '/^$/,$d' \
    /etc/apt/sources.list.d/debian.sources >"$next/trixie.sources"
  local -a there=(-o Dir::Etc::sourcelist="$next/trixie.sources" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$next/lists" -o Dir::Cache="$next/cache" -o APT::Sandbox::User=root)
  quietly apt "${there[@]}" update
  (cd "$next" && quietly apt "${there[@]}" download docker-compose)
  dpkg-deb --fsys-tarfile "$next"/docker-compose_*.deb |
    tar -x -C "$plugins" --strip-components=5 ./usr/libexec/docker/cli-plugins/docker-compose
}

start_engine() {
  dockerd --host "$DOCKER_HOST" --data-root "$scratch/data" --exec-root "$scratch/exec" \
    --pidfile "$scratch/dockerd.pid" --bridge=none --iptables=false --ip6tables=false \
    --ip-masq=false --ip-forward=false >"$scratch/dockerd.log" 2>&1 &
  engine=$!
  for _ in $(seq 200); do
    docker info >/dev/null 2>&1 && return
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.3
  done
  tail -n 20 "$scratch/dockerd.log" >&2
  return 1
}

# The stand-in for the image python:3.11-slim: Debian 12 with its own Python 3.11, this machine's
# certificate authorities, and the wheels that its pip is told to look at (pip's find-links).
base_image() {
  local root=$scratch/root
  quietly mmdebstrap --mode=root --variant=minbase \
    --include=ca-certificates,python3.11,python3.11-venv,libgomp1 \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    bookworm "$root" /etc/apt/sources.list.d/debian.sources
  ln -s /usr/bin/python3.11 "$root/usr/local/bin/python3"
  ln -s /usr/bin/python3.11 "$root/usr/local/bin/python"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  mkdir "$root/wheels"
  local wheels
  wheels=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}
  [ ! -d "$wheels" ] || find "$wheels" -name '*.whl' -exec cp -t "$root/wheels" {} +
  tar -C "$root" --numeric-owner -c . | quietly docker import \
    -c 'ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin' -c 'ENV LANG=C.UTF-8' \
    -c 'ENV PIP_FIND_LINKS=/wheels' -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' \
    -c 'CMD ["python3"]' - python:3.11-slim
  rm -rf --one-file-system "$root"
}

packages
compose_plugin
version=$(docker compose version)
say "$version"
start_engine
say "engine $(docker version -f '{{.Server.Version}}')"
base_image
say "base image: $(docker image inspect -f '{{.Size}}' python:3.11-slim) bytes"
"$@"
