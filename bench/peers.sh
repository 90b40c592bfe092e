#!/usr/bin/env bash
# Brings the brokers that `quorate-bench compare` measures beside Quorate: Debian's packages, and of what they depend on
# only what this machine lacks. They are unpacked into one folder and never installed, so no service is set up or
# started, and one `rm -r` undoes all of it. Quiet and quick when they are there.
set -euo pipefail

into=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/quorate/peers}
wanted=(rabbitmq-server nats-server mosquitto)

# Which packages are in the folder; written last, so a run that was ended early begins anew.
list=$into/packages.txt
[ -s "$list" ] && exit 0

for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || {
        echo "peers: no $tool here: install ${wanted[*]} by other means, quorate-bench finds them on PATH" >&2
        exit 1
    }
done
if ! apt-get -qq --simulate --no-install-recommends install "${wanted[@]}" >/dev/null 2>&1; then
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "peers: apt does not know ${wanted[*]}: please run apt-get update as root" >&2; exit 1; }
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get -qq update
fi

# What an installation would bring is what this machine lacks. Packages that are installed already are not named there;
# their programs are found on PATH.
mapfile -t packages < <(apt-get -qq --simulate --no-install-recommends install "${wanted[@]}" |
    sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p')

half=$into.half
rm -rf "$half"
mkdir -p "$half/packages"
if [ ${#packages[@]} -gt 0 ]; then
    echo "peers: downloading ${#packages[@]} packages"
    # As root apt downloads as a user of its own, who may not write into a home: it then says so and goes on as root.
    (cd "$half/packages" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}")
    for package in "$half"/packages/*.deb; do
        dpkg-deb -x "$package" "$half"
    done
fi
rm -r "$half/packages"
printf '%s\n' "${packages[@]:-none: all were installed}" >"$half/packages.txt"
rm -rf "$into"
mv "$half" "$into"
echo "peers: unpacked into $into"
