#!/usr/bin/env bash
# The source tree → cross/bin/<arch>/agent, static and stripped, with wrapp and jettison_health as links to it.
#
#   cross/build-binaries.sh [arm64|arm64-generic|amd64|all]…    default: all = arm64 and amd64
#     arm64           the board: Cortex-A78AE (Orin)
#     arm64-generic   any aarch64
#     amd64           any x86-64
#
#   --profile release|maxperf     default: release
#   --features LIST               for example jemalloc
#   --toolchain rustup|debian     default: rustup where its target can be had, else Debian's packages (root installs them)
#   --out DIR                     default: cross/bin
#   --twice                       builds again from a copy of the tree in another folder, and compares byte for byte
#
# The debug information lies beside it by build-id, where gdb and `agent symbolize --debug-dir` look for it:
# cross/bin/<arch>/debug/.build-id/xx/….debug. Two builds of one tree with one toolchain are equal: paths are
# replaced, and nothing takes the time.
set -euo pipefail
# A failure inside of $(…) is one outside too.
shopt -s inherit_errexit

say() { if [ -t 2 ]; then printf '\033[1;34m==>\033[0m %s\n' "$*" >&2; else printf '==> %s\n' "$*" >&2; fi; }
die() { printf 'build-binaries.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }

tree=$(cd "$(dirname "$0")/.." && pwd)
out=$tree/cross/bin
profile=release
features=
toolchain=auto
twice=no
archs=()
while [ $# -gt 0 ]; do
  case "$1" in
    arm64 | arm64-generic | amd64) archs+=("$1") ;;
    aarch64) archs+=(arm64) ;;
    x86_64 | x86-64) archs+=(amd64) ;;
    all) archs+=(arm64 amd64) ;;
    --profile) profile=${2:?}; shift ;;
    --features) features=${2?}; shift ;;
    --toolchain) toolchain=${2:?}; shift ;;
    --out) mkdir -p "${2:?}"; out=$(cd "$2" && pwd); shift ;;
    --twice) twice=yes ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ ${#archs[@]} -gt 0 ] || archs=(arm64 amd64)
case "$profile" in release | maxperf) ;; *) die "no such profile: $profile" ;; esac
case "$toolchain" in auto | rustup | debian) ;; *) die "no such toolchain: $toolchain" ;; esac

# --- per architecture ------------------------------------------------------------------------------------------------

triple_of() { case "$1" in arm64*) echo aarch64-unknown-linux-gnu ;; amd64) echo x86_64-unknown-linux-gnu ;; esac; }
machine_of() { case "$1" in arm64*) echo aarch64 ;; amd64) echo x86_64 ;; esac; }
debian_of() { case "$1" in arm64*) echo arm64 ;; amd64) echo amd64 ;; esac; }
cpu_of() { case "$1" in arm64) echo cortex-a78ae ;; arm64-generic) echo generic ;; amd64) echo x86-64 ;; esac; }
native() { [ "$(uname -m)" = "$(machine_of "$1")" ]; }
# The prefix of compiler and binutils; with a native build there is none.
tools_of() { if native "$1"; then echo; else echo "$(machine_of "$1")-linux-gnu-"; fi; }

# --- what is needed --------------------------------------------------------------------------------------------------

has_std() { # RUSTC TRIPLE
  [ -n "$(find "$("$1" --print sysroot 2>/dev/null)/lib/rustlib/$2/lib" -name 'libstd-*.rlib' -print -quit 2>/dev/null)" ]
}

install() { # PACKAGE…
  [ $# -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "missing packages (as root: apt-get install $*)"
  say "installing $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing_tools() { # ARCH → packages
  local cc
  cc=$(tools_of "$1")gcc
  if ! command -v "$cc" >/dev/null; then
    if native "$1"; then echo gcc libc6-dev; else
      echo "gcc-$(machine_of "$1" | tr _ -)-linux-gnu" "libc6-dev-$(debian_of "$1")-cross"
    fi
  fi
}

use_rustup() { # ARCH
  local triple
  triple=$(triple_of "$1")
  command -v rustc >/dev/null && command -v cargo >/dev/null || return 1
  has_std rustc "$triple" || { command -v rustup >/dev/null && rustup target add "$triple" >&2; } || return 1
  has_std rustc "$triple" || return 1
  rustc=$(rustc --print sysroot)/bin/rustc
  cargo=$(command -v cargo)
}

use_debian() { # ARCH
  local packages=() debian
  debian=$(debian_of "$1")
  [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] || packages+=(rustc-web cargo-web)
  if ! [ -x /usr/bin/rustc ] || ! has_std /usr/bin/rustc "$(triple_of "$1")"; then
    if ! native "$1"; then
      dpkg --print-foreign-architectures | grep -qx "$debian" || dpkg --add-architecture "$debian"
    fi
    packages+=("libstd-rust-web-dev:$debian")
  fi
  [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
  install "${packages[@]}"
  rustc=/usr/bin/rustc
  cargo=/usr/bin/cargo
}

prepare() { # ARCH: sets rustc, cargo
  local packages
  read -ra packages <<<"$(missing_tools "$1" | tr '\n' ' ')"
  install "${packages[@]}"
  case "$toolchain" in
    rustup) use_rustup "$1" || die "rustup has no standard library for $(triple_of "$1")" ;;
    debian) use_debian "$1" ;;
    auto) use_rustup "$1" || use_debian "$1" ;;
  esac
}

# --- the build -------------------------------------------------------------------------------------------------------

# One build of the tree SOURCE into the cargo folder TARGET; prints where the unstripped binary lies.
compile() { # ARCH SOURCE TARGET
  local arch=$1 source=$2 target=$3 triple under tools home flags
  triple=$(triple_of "$arch")
  under=${triple//-/_}
  tools=$(tools_of "$arch")
  home=${CARGO_HOME:-$HOME/.cargo}
  # Nothing of this machine goes into the binary. (Last match wins: the tree may lie below the home.)
  flags="-C target-cpu=$(cpu_of "$arch") -C target-feature=+crt-static -C relocation-model=static"
  flags="$flags -C link-arg=-Wl,--build-id=sha1"
  flags="$flags --remap-path-prefix=$home=/cargo --remap-path-prefix=$source=/agent"
  (
    cd "$source"
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTUP_TOOLCHAIN CARGO_BUILD_TARGET
    export RUSTC=$rustc CARGO_INCREMENTAL=0
    export "CARGO_TARGET_${under^^}_LINKER=${tools}gcc" "CARGO_TARGET_${under^^}_RUSTFLAGS=$flags"
    export "CC_$under=${tools}gcc" "AR_$under=${tools}ar"
    export "CFLAGS_$under=-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$source=/agent -ffile-prefix-map=$target=/target"
    # jemalloc fixes its page size when it is built; some arm64 kernels have 64 KiB.
    case "$arch" in arm64*) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; esac
    local upper=${profile^^}
    export "CARGO_PROFILE_${upper}_STRIP=none" "CARGO_PROFILE_${upper}_DEBUG=line-tables-only"
    "$cargo" build --locked --target-dir "$target" --profile "$profile" --target "$triple" --bin agent ${features:+--features "$features"} >&2
  )
  echo "$target/$triple/$profile/agent"
}

# Unstripped binary → folder with binary, links and debug file.
lay_out() { # ARCH BINARY FOLDER
  local arch=$1 binary=$2 folder=$3 tools id debug
  tools=$(tools_of "$arch")
  rm -rf "$folder"
  mkdir -p "$folder"
  id=$("${tools}readelf" -n "$binary" | sed -n 's/^ *Build ID: //p')
  [ -n "$id" ] || die "$binary has no build-id"
  debug=$folder/debug/.build-id/${id:0:2}/${id:2}.debug
  mkdir -p "$(dirname "$debug")"
  "${tools}objcopy" --only-keep-debug --compress-debug-sections=zlib "$binary" "$debug"
  chmod 644 "$debug"
  "${tools}strip" --strip-all -o "$folder/agent" "$binary"
  chmod 755 "$folder/agent"
  ln -s agent "$folder/wrapp"
  ln -s agent "$folder/jettison_health"
}

# Whose code is inside, and under which licence: a list, then each text once.
licences() { # ARCH FILE
  local home crates texts
  home=${CARGO_HOME:-$HOME/.cargo}
  crates=$(cd "$tree" && RUSTC=$rustc "$cargo" tree --locked --quiet --target "$(triple_of "$1")" ${features:+--features "$features"} \
    --edges normal --prefix none --format '{p} {l}' | sed -E 's/ \(proc-macro\)//; s/ \((\/[^)]*|\*)\)//g' | LC_ALL=C sort -u)
  {
    echo "The agent is a static binary made of these packages, the Rust standard library (MIT OR Apache-2.0)"
    echo "and the GNU C Library (LGPL-2.1-or-later; the sources of this program allow it to be linked anew)."
    echo
    echo "$crates"
    texts=$(mktemp -d)
    while read -r name version _; do
      for text in "$home"/registry/src/*/"$name-${version#v}"/{LICEN[SC]E,COPYING,NOTICE,COPYRIGHT}*; do
        [ -f "$text" ] || continue
        sum=$(sha256sum <"$text" | cut -c1-32)
        cp "$text" "$texts/$sum"
        echo "$name" >>"$texts/$sum.of"
      done
    done <<<"$crates"
    for of in "$texts"/*.of; do
      echo "$(LC_ALL=C sort -u "$of" | paste -sd' ')|${of%.of}"
    done | LC_ALL=C sort | while IFS='|' read -r names text; do
      printf '\n=== %s\n\n' "$names"
      cat "$text"
    done
    rm -rf "$texts"
  } >"$2"
}

verify() { # ARCH FOLDER
  local arch=$1 binary=$2/agent tools header
  tools=$(tools_of "$arch")
  header=$("${tools}readelf" -hl "$binary")
  case "$arch" in
    arm64*) grep -q 'Machine: *AArch64' <<<"$header" || die "$binary is not for aarch64" ;;
    amd64) grep -q 'Machine: *Advanced Micro Devices X86-64' <<<"$header" || die "$binary is not for x86-64" ;;
  esac
  ! grep -qE 'INTERP|DYNAMIC' <<<"$header" || die "$binary is not static"
  ! "${tools}readelf" -SW "$binary" | grep -qE '\.(symtab|debug_info)' || die "$binary is not stripped"
  local path
  for path in "$tree" "${CARGO_HOME:-$HOME/.cargo}"; do
    # In an image's first stage the tree may lie where paths are made to point.
    case "$path" in /agent | /cargo) continue ;; esac
    ! grep -qaF -e "$path/" "$binary" || die "$binary names paths of this machine: $path"
  done
  if native "$arch"; then "$binary" --version >&2; elif command -v "qemu-$(machine_of "$arch")-static" >/dev/null; then
    "qemu-$(machine_of "$arch")-static" "$binary" --version >&2
  fi
  say "$arch: $(stat -c %s "$binary") bytes, $(gzip -9c "$binary" | wc -c) compressed, $("$rustc" --version)"
}

# The tree as it is (tracked and new files, no ignored ones), somewhere else.
copy_tree() { # FOLDER
  mkdir -p "$1"
  if git -C "$tree" rev-parse --git-dir >/dev/null 2>&1; then
    git -C "$tree" ls-files -z --cached --others --exclude-standard --deduplicate |
      (cd "$tree" && tar --null --ignore-failed-read -cf - -T -) | tar -xf - -C "$1"
  else
    tar -C "$tree" --exclude=./target --exclude=./cross/bin -cf - . | tar -xf - -C "$1"
  fi
}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$tree" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
for arch in "${archs[@]}"; do
  prepare "$arch"
  say "$arch: $(triple_of "$arch"), $(cpu_of "$arch"), profile $profile${features:+, $features}"
  started=$SECONDS
  if [ "$twice" = yes ]; then
    # Before the first build: it takes minutes, in which somebody may go on working on the tree.
    other=$(mktemp -d)
    trap 'rm -rf "$other"' EXIT
    copy_tree "$other/another/place"
  fi
  binary=$(compile "$arch" "$tree" "${CARGO_TARGET_DIR:-$tree/target}/cross-$arch")
  lay_out "$arch" "$binary" "$out/$arch"
  licences "$arch" "$out/$arch/licences.txt"
  verify "$arch" "$out/$arch"
  say "$arch: $out/$arch after $((SECONDS - started)) s"
  if [ "$twice" = yes ]; then
    binary=$(compile "$arch" "$other/another/place" "$other/cargo")
    lay_out "$arch" "$binary" "$other/bin"
    licences "$arch" "$other/bin/licences.txt"
    diff -r "$out/$arch" "$other/bin" >&2 || die "$arch: a second build differs"
    say "$arch: a second build from another folder is the same, byte for byte ($(sha256sum <"$out/$arch/agent" | cut -c1-16))"
    rm -rf "$other"
  fi
done
