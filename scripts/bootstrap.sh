#!/bin/sh
# Installs what is missing to run | demo | dev (tests, lint): system packages, then .venv from the lock files.
# Nothing to do: returns at once. PYTHON=... picks the interpreter; else it is the distribution's, where that is new
# enough: root runs what root's package manager keeps up to date, and it is built with optimisations (PGO), which those
# that version managers build are usually not.
set -eu

mode=${1:-run}
case $mode in run | demo | dev) ;; *) echo "usage: $0 run|demo|dev" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # `su` leaves them out
export PATH
umask 022

say() { echo "bootstrap: $*"; }
die() { echo "bootstrap: $*" >&2; exit 1; }

# --- which Python ---------------------------------------------------------------------------------------------
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=
candidates=${PYTHON:-/usr/bin/python3 python3 python3.13 python3.12 python3.11}
for candidate in $candidates; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || die "no Python 3.11 or newer among: $candidates." \
    "Install one (Debian 12, Ubuntu 24.04: apt-get install python3), or name it: make PYTHON=/path/to/python3 ..."

# What must be equal for a .venv to be good: the interpreter, this directory (scripts carry it), the locks.
version=$("$python" -c 'import sys; print(sys.version)')
base=$(printf '%s\n' "$version" "$PWD" | sha256sum | cut -c1-64)
locks="requirements-build.lock requirements.lock"
[ "$mode" != dev ] || locks="requirements-build.lock requirements-dev.lock"
key() { { echo "$base"; cat pyproject.toml "$@"; } | sha256sum | cut -c1-64; }
# shellcheck disable=SC2086 # a list
wanted=$(key $locks)

venv=.venv
group=run
[ "$mode" != dev ] || group=dev # dev has all of run, with the same versions
fresh() { [ -x $venv/bin/bridgehead ] && [ "$(cat "$venv/.stamp-$group" 2>/dev/null)" = "$wanted" ]; }

# --- system packages ------------------------------------------------------------------------------------------
missing=
installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }
need() { # need PACKAGE COMMAND: missing is what neither dpkg knows nor PATH has
    installed "$1" || command -v "$2" >/dev/null 2>&1 || missing="$missing $1"
}
need_library() { # need_library PACKAGE FILE: the same for what the dynamic linker finds
    installed "$1" || ldconfig -p | grep -q "$2" || missing="$missing $1"
}
need iptables iptables # brings libxtables, libip4tc, libip6tc and the extensions
need_library libnftables1 libnftables.so.1
# the daemon itself uses none of these: the README's lines, the demo and the tests do
need iproute2 ip
need iputils-ping ping
need curl curl
[ "$mode" != dev ] || need nftables nft
[ "$mode" != dev ] || need systemd systemd-analyze # boots the shipped unit, in namespaces
if ! fresh; then
    # Debian's default python3 takes python3-venv; a second one (python3.12) takes python3.12-venv.
    pkg=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    [ "$(command -v "$python")" != /usr/bin/python3 ] || pkg=python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing $pkg-venv"
    # python-iptables comes as source: a C extension.
    locked=$(sed -n 's/^python-iptables==\([^ ;]*\).*/\1/p' requirements.lock)
    if ! $venv/bin/python -c "from importlib.metadata import version as v; assert v('python-iptables') == '$locked'" \
        2>/dev/null; then
        need gcc gcc
        [ -e /usr/include/stdlib.h ] || installed libc6-dev || missing="$missing libc6-dev"
        "$python" -c 'import os.path as p, sysconfig as s; assert p.exists(p.join(s.get_path("include"), "Python.h"))' \
            2>/dev/null || missing="$missing $pkg-dev"
    fi
fi
if [ -n "$missing" ]; then
    by_hand="needed system packages:$missing. Install them by hand (Debian, Ubuntu: apt-get install$missing)"
    command -v apt-get >/dev/null || die "no apt-get here; $by_hand, then call this again."
    [ "$(id -u)" = 0 ] || die "not root; $by_hand, or call this as root."
    say "installing system packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list
    if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install:$missing"
    fi
    rm -f "$log"
fi

# --- .venv ----------------------------------------------------------------------------------------------------
! fresh || exit 0
if [ "$(cat $venv/.base 2>/dev/null)" != "$base" ] || ! new_enough $venv/bin/python; then
    say "making $venv with Python $(echo "$version" | cut -d' ' -f1)"
    rm -rf $venv
    "$python" -m venv $venv
    echo "$base" >$venv/.base
fi
rm -f $venv/.stamp-*
pip() { $venv/bin/python -m pip --quiet --disable-pip-version-check --no-input "$@"; }
for lock in $locks; do
    say "installing $(grep -c '^[a-z].*==' "$lock") Python packages of $lock into $venv"
    # No isolation: isolated builds would fetch their setuptools without a hash.
    pip install --require-hashes --no-deps --no-build-isolation --use-pep517 -r "$lock"
done
pip install --no-deps --no-build-isolation -e .
[ "$mode" != dev ] || key requirements-build.lock requirements.lock >$venv/.stamp-run
echo "$wanted" >"$venv/.stamp-$group"
say "done"
