#!/usr/bin/env bash
# Installs what the build needs and the machine lacks.
#   tools/deps.sh           install through apt (as root or with sudo that asks nothing); else say what to ask for
#   tools/deps.sh --check   only say what is missing; exit status 1 if anything is
#   tools/deps.sh --unpack  without root: download the packages and unpack them under .deps/ (the Makefile looks there)
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-install}

missing() {
  command -v g++ >/dev/null || echo g++
  command -v make >/dev/null || echo make
  command -v spm_encode >/dev/null || [ -x .deps/usr/bin/spm_encode ] || echo sentencepiece
  local probe='' pair
  for pair in nlohmann/json.hpp:nlohmann-json3-dev CLI/CLI.hpp:libcli11-dev gtest/gtest.h:libgtest-dev \
              sentencepiece_processor.h:libsentencepiece-dev pcre2posix.h:libpcre2-dev; do
    probe+="#if !__has_include(<${pair%%:*}>)"$'\n'"missing ${pair#*:}"$'\n'"#endif"$'\n'
    command -v g++ >/dev/null || echo "${pair#*:}"
  done
  command -v g++ >/dev/null && g++ -E -P -isystem .deps/usr/include -x c++ - <<<"$probe" | sed -n 's/^missing //p'
}

mapfile -t packages < <(missing | sort -u)
[ ${#packages[@]} -eq 0 ] && exit 0
list="${packages[*]}"

if [ "$mode" = --check ]; then
  { echo "missing packages: $list"
    echo "  try     : make deps"; } >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "this machine has no apt-get; install what these Debian packages hold, then run make again: $list" >&2
  exit 1
fi
if [ "$mode" = --unpack ]; then
  # A simulated installation names the packages still missing, libraries behind libraries included.
  mkdir -p .deps/packages
  mapfile -t all < <(apt-get -s install --no-install-recommends $list | sed -n 's/^Inst \([^ ]*\).*/\1/p')
  (cd .deps/packages && apt-get download "${all[@]}")
  for package in .deps/packages/*.deb; do dpkg -x "$package" .deps; done
  rm -r .deps/packages
  left=$(missing | sort -u | tr '\n' ' ')
  [ -z "$left" ] || { echo "still missing (they must be installed by root): $left" >&2; exit 1; }
  echo "unpacked under .deps/: $list"
  exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    { echo "missing packages: $list"
      echo "  ask     : apt-get install $list     (needs root)"
      echo "  or      : make deps LOCAL=1     unpacks them under .deps/, without root"; } >&2
    exit 1
  fi
  as_root=(sudo -n)
fi
echo "installing: $list"
export DEBIAN_FRONTEND=noninteractive
install=("${as_root[@]}" apt-get install -y -q --no-install-recommends "${packages[@]}")
# A fresh machine has no package lists yet; they are fetched only then, or when the lists at hand are stale.
"${install[@]}" >.deps.log 2>&1 || { "${as_root[@]}" apt-get update -q >>.deps.log 2>&1 && "${install[@]}" >>.deps.log 2>&1; } || {
  tail -n 20 .deps.log >&2
  echo "apt-get could not install them (the whole log: .deps.log)" >&2
  exit 1
}
rm -f .deps.log
left=$(missing | sort -u | tr '\n' ' ')
[ -z "$left" ] || { echo "installed, but still not found: $left" >&2; exit 1; }
