#!/usr/bin/env bash
# A binary and the files of systemd/ → a Debian package, the same bytes each time.
#
#   cross/build-deb.sh [arm64|amd64|all] [--binary FILE] [--output FOLDER]
#
# Without --binary it takes cross/bin/<arch>/agent (cross/build-binaries.sh makes it), else, for
# this machine's own architecture, target/release/agent. Needs dpkg-deb, nothing else.
# SOURCE_DATE_EPOCH is the last commit's time unless set. DEB_MAINTAINER names who ships it.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "usage: cross/build-deb.sh [arm64|amd64|all] [--binary FILE] [--output FOLDER]" >&2
  exit 2
}
own=$(dpkg --print-architecture)
wanted=$own
binary=""
output=cross/bin
while [ $# -gt 0 ]; do
  case "$1" in
    arm64 | aarch64) wanted=arm64 ;;
    amd64 | x86_64) wanted=amd64 ;;
    all) wanted="amd64 arm64" ;;
    --binary) binary=${2:?$(usage)} && shift ;;
    --output) output=${2:?$(usage)} && shift ;;
    *) usage ;;
  esac
  shift
done
if [ -n "$binary" ] && [ "$wanted" = "amd64 arm64" ]; then
  usage
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
maintainer=${DEB_MAINTAINER:-The jettison-agent developers <noreply@users.noreply.github.com>}

# The two bytes of e_machine, ELF header, offset 18.
machine_of() {
  case $(od -An -tx1 -j18 -N2 "$1" | tr -d ' ') in
    3e00) echo amd64 ;;
    b700) echo arm64 ;;
    *) echo unknown ;;
  esac
}

build() {
  local arch=$1 file=$binary
  if [ -z "$file" ]; then
    file=cross/bin/$arch/agent
    if [ ! -e "$file" ] && [ "$arch" = "$own" ]; then
      file=target/release/agent
    fi
  fi
  if [ ! -e "$file" ]; then
    echo "$file does not exist: cross/build-binaries.sh $arch makes it" >&2
    exit 1
  fi
  if [ "$(machine_of "$file")" != "$arch" ]; then
    echo "$file is not for $arch" >&2
    exit 1
  fi

  local root
  root=$(mktemp -d)
  # shellcheck disable=SC2064 # now, not later: the name is local
  trap "rm -rf '$root'" EXIT
  put() { install -D -m "$1" "$2" "$root/$3"; }
  put 755 "$file" usr/local/bin/agent
  ln -s agent "$root/usr/local/bin/wrapp"
  ln -s agent "$root/usr/local/bin/jettison_health"
  put 644 systemd/agent.service lib/systemd/system/agent.service
  put 644 systemd/agent@.service lib/systemd/system/agent@.service
  put 644 systemd/sysusers.conf usr/lib/sysusers.d/agent.conf
  put 644 systemd/tmpfiles.conf usr/lib/tmpfiles.d/agent.conf
  put 644 systemd/core-pattern.conf usr/lib/sysctl.d/60-agent-core.conf
  put 644 systemd/hardened.conf usr/share/jettison-agent/hardened.conf
  put 644 systemd/agent.container usr/share/jettison-agent/agent.container
  put 644 cross/package/agent.toml etc/agent/agent.toml
  put 644 cross/package/services.README etc/agent/services.d/README
  put 644 cross/package/wrapp.README etc/agent/wrapp/README
  put 644 cross/package/lintian-overrides usr/share/lintian/overrides/jettison-agent
  local doc=usr/share/doc/jettison-agent
  put 644 README.md $doc/README.md
  gzip -9n "$root/$doc/README.md"
  {
    echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    echo
    echo "Files: *"
    echo "Copyright: $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y) The jettison-agent developers"
    echo "License: GPL-3+"
    echo " On Debian systems the full text of the GNU General Public License version 3 is in"
    echo " /usr/share/common-licenses/GPL-3."
  } >"$root/$doc/copyright"
  {
    echo "jettison-agent ($version) unstable; urgency=medium"
    echo
    echo "  * Made from commit $(git rev-parse --short=12 HEAD)."
    echo
    echo " -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
  } | gzip -9n >"$root/$doc/changelog.gz"
  chmod 644 "$root/$doc"/*

  local size
  size=$(du -sk --apparent-size "$root" | cut -f1)
  mkdir "$root/DEBIAN"
  sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" \
    -e "s/@MAINTAINER@/$maintainer/" cross/package/control.in >"$root/DEBIAN/control"
  (cd "$root" && find etc -type f -printf '/%p\n' | LC_ALL=C sort) >"$root/DEBIAN/conffiles"
  (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z |
    grep -zv '^etc/' | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  for script in postinst prerm postrm; do
    install -m 755 "cross/package/$script" "$root/DEBIAN/$script"
  done
  find "$root" -type d -exec chmod 755 {} +
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

  mkdir -p "$output"
  local package=$output/jettison-agent_${version}_$arch.deb
  dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
  rm -rf "$root"
  trap - EXIT
  echo "$package"
}

for arch in $wanted; do
  build "$arch"
done
