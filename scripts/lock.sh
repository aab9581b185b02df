#!/bin/sh
# Writes the lock files: exact versions and hashes for every Linux and every supported Python, and no address.
set -eu
cd "$(dirname "$0")/.."

command -v uv >/dev/null || { .venv/bin/python -m pip install --quiet uv; PATH=$PWD/.venv/bin:$PATH; }
lock() { # lock OUTPUT INPUT...; --upgrade and the like are in $flags
    out=$1
    shift
    # shellcheck disable=SC2086 # a list
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links $flags -o "$out" "$@"
}
flags=$*
lock requirements.lock pyproject.toml
lock requirements-dev.lock --extra dev -c requirements.lock pyproject.toml
# What builds this package and python-iptables, which comes as source.
printf '%s\n' hatchling editables setuptools | lock requirements-build.lock -c requirements-dev.lock -
sed -i "s/ ; sys_platform == 'linux'//; s/ and sys_platform == 'linux'//" requirements*.lock # there is no other
! grep -n '://' requirements*.lock
