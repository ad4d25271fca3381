#!/usr/bin/env bash
# Binaries (or the source tree) → the base images, with podman, buildah or docker.
#
#   cross/build_base_images.sh [ubuntu22|ubuntu22-can|scratch|agent]…    default: ubuntu22, ubuntu22-can and scratch
#
#   --arch LIST            amd64, arm64 or both, with a comma; default: this machine's. A foreign base-ubuntu22 needs
#                          binfmt_misc for its RUN steps; scratch needs nothing.
#   --source               builds the binary in the image's first stage; default: cross/bin/<arch>, made now if it is not there
#   --profile, --features  as in cross/build-binaries.sh
#   --base IMAGE           instead of docker.io/library/ubuntu:22.04
#   --hiredis URL          where its source archive is, or `none`; default: version 1.3.0 on GitHub
#   --bootstrap SUITE      without a registry: makes the base with mmdebstrap (apt), for example jammy or bookworm
#   --prefix PREFIX        names are PREFIX + variant; default: localhost:5000/jettison/base- (ghcr.io/OWNER/jettison-base-)
#   --tags LIST            default: latest. Each architecture has TAG-<arch>; TAG itself is the manifest of all that were built.
#   --no-manifest          only TAG-<arch>; what joins the work of several machines makes the manifest
#   --push                 pushes images and manifests
#   --engine E             podman, buildah or docker; default: the first that is there
#   -- OPTION…             more options for the build command (`--isolation chroot --network host` inside of containers)
#
# Prerequisites are checked first. The labels hold version and revision; times are those of the last commit, so that
# the layers of two builds of one tree on one base are the same.
set -euo pipefail
shopt -s inherit_errexit

say() { if [ -t 2 ]; then printf '\033[1;34m==>\033[0m %s\n' "$*" >&2; else printf '==> %s\n' "$*" >&2; fi; }
good() { if [ -t 2 ]; then printf '\033[1;32m ok\033[0m %s\n' "$*" >&2; else printf ' ok %s\n' "$*" >&2; fi; }
die() { if [ -t 2 ]; then printf '\033[1;31mfailed\033[0m %s\n' "$*" >&2; else printf 'failed %s\n' "$*" >&2; fi; exit 1; }
usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }
host_arch() { case "$(uname -m)" in aarch64) echo arm64 ;; x86_64) echo amd64 ;; *) uname -m ;; esac; }

cd "$(dirname "$0")/.."
variants=()
archs=$(host_arch)
binaries=prebuilt
profile=release
features=
base=docker.io/library/ubuntu:22.04
hiredis=
suite=
prefix=${PREFIX:-localhost:5000/jettison/base-}
tags=latest
push=no
manifests=yes
engine=${ENGINE:-}
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    ubuntu22 | ubuntu22-can | scratch | agent) variants+=("$1") ;;
    --arch) archs=${2:?}; shift ;;
    --source) binaries=source ;;
    --profile) profile=${2:?}; shift ;;
    --features) features=${2?}; shift ;;
    --base) base=${2:?}; shift ;;
    --hiredis) hiredis=${2:?}; shift ;;
    --bootstrap) suite=${2:?}; shift ;;
    --prefix) prefix=${2:?}; shift ;;
    --tags) tags=${2:?}; shift ;;
    --push) push=yes ;;
    --no-manifest) manifests=no ;;
    --engine) engine=${2:?}; shift ;;
    --) shift; options=("$@"); break ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ ${#variants[@]} -gt 0 ] || variants=(ubuntu22 ubuntu22-can scratch)
archs=$(tr ',' ' ' <<<"$archs" | sed 's/aarch64/arm64/g; s/x86[_-]64/amd64/g')
read -ra tags <<<"$(tr ',' ' ' <<<"$tags")"

# --- prerequisites ---------------------------------------------------------------------------------------------------

if [ -z "$engine" ]; then
  for engine in podman buildah docker none; do command -v "$engine" >/dev/null && break; done
fi
command -v "$engine" >/dev/null || die "no podman, buildah or docker here"
for arch in $archs; do
  case "$arch" in amd64 | arm64) ;; *) die "no such architecture: $arch" ;; esac
  [ "$arch" = "$(host_arch)" ] && continue
  case " ${variants[*]} " in
    *ubuntu22*)
      grep -qs "^enabled" /proc/sys/fs/binfmt_misc/qemu-"$(sed 's/arm64/aarch64/; s/amd64/x86_64/' <<<"$arch")" ||
        die "$arch programs do not run here: install qemu-user-static and binfmt-support (scratch and agent can be built all the same)" ;;
  esac
done
[ -z "$suite" ] || command -v mmdebstrap >/dev/null || die "--bootstrap needs mmdebstrap"
if [ "$binaries" = prebuilt ]; then
  for arch in $archs; do
    [ -x "cross/bin/$arch/agent" ] || cross/build-binaries.sh "$arch" --profile "$profile" --features "$features"
  done
fi
good "engine $engine, architectures $archs, binaries: $binaries"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
[ -n "$version" ] || version=dev
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

# --- a base without a registry ---------------------------------------------------------------------------------------

# Prints the name of the base image of this architecture.
base_of() { # ARCH
  [ -n "$suite" ] || { echo "$base"; return; }
  local name=localhost/bootstrapped-$suite-$1:latest archive mirror=()
  if ! image_exists "$name"; then
    say "mmdebstrap $suite for $1"
    archive=$(mktemp --suffix=.tar)
    # Debian's suites come with their updates by themselves. Ubuntu's libraries for services (libsoup3) are in universe.
    case "$suite" in
      jammy)
        local host=http://archive.ubuntu.com/ubuntu pocket
        [ "$1" = amd64 ] || host=http://ports.ubuntu.com/ubuntu-ports
        for pocket in "" -updates -security; do mirror+=("deb $host jammy$pocket main universe"); done ;;
    esac
    mmdebstrap --quiet --variant=minbase --arch="$1" --include=ca-certificates \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      "$suite" "$archive" "${mirror[@]}" >&2
    case "$engine" in
      docker) docker import --platform "linux/$1" "$archive" "$name" >/dev/null ;;
      *) podman import --quiet --arch "$1" --os linux "$archive" "$name" >/dev/null ;;
    esac
    rm -f "$archive"
  fi
  echo "$name"
}

image_exists() {
  case "$engine" in
    docker) docker image inspect "$1" >/dev/null 2>&1 ;;
    buildah) buildah inspect --type image "$1" >/dev/null 2>&1 ;;
    *) podman image exists "$1" ;;
  esac
}

# --- building --------------------------------------------------------------------------------------------------------

target_of() { case "$1" in agent) echo agent ;; *) echo "base-$1" ;; esac; }
# `…/jettison/base-` + scratch, but `…/jettison/agent`.
name_of() { case "$1" in agent) echo "${prefix%base-}agent" ;; *) echo "$prefix$1" ;; esac; }

build() { # VARIANT ARCH
  local name from_files from command
  name=$(name_of "$1"):${tags[0]}-$2
  from_files=$(base_of "$(host_arch)")
  case "$1" in
    ubuntu22*) from=$(base_of "$2") ;;
    # Nothing of the base is in them.
    *) from=$from_files ;;
  esac
  case "$engine" in
    docker) command=(docker buildx build --load --provenance=false) ;;
    buildah) command=(buildah bud --format docker --layers --timestamp "$epoch") ;;
    *) command=(podman build --format docker --layers --timestamp "$epoch") ;;
  esac
  [ "$engine" = docker ] || command+=(--build-arg "BUILDPLATFORM=linux/$(host_arch)")
  # A base that was made here can be pulled from nowhere.
  [ -z "$suite" ] || case "$engine" in docker) ;; *) command+=(--pull-never) ;; esac
  "${command[@]}" "${options[@]}" --platform "linux/$2" --file cross/images/Dockerfile --target "$(target_of "$1")" \
    --build-arg "BASE_IMAGE=$from" --build-arg "FILES_IMAGE=$from_files" --build-arg "BINARIES=$binaries" \
    ${suite:+--build-arg "RUST_IMAGE=$from_files"} \
    --build-arg "PROFILE=$profile" --build-arg "FEATURES=$features" --build-arg "SOURCE_DATE_EPOCH=$epoch" \
    ${hiredis:+--build-arg "HIREDIS=${hiredis/#none/}"} \
    --label "org.opencontainers.image.title=$(basename "$(name_of "$1")")" \
    --label "org.opencontainers.image.description=Supervisor of services for NVIDIA Jetson: lines to Redis, crashes explained, health" \
    --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.revision=$revision" \
    --label "org.opencontainers.image.licenses=GPL-3.0-or-later" \
    --tag "$name" . >&2 || die "$name"
  good "$name"
}

# The same image under every tag.
alias_tags() { # VARIANT ARCH
  local tag
  for tag in "${tags[@]:1}"; do
    "$engine" tag "$(name_of "$1"):${tags[0]}-$2" "$(name_of "$1"):$tag-$2"
  done
}

# A registry on this machine has no certificate.
tls=()
case "$prefix" in localhost* | 127.0.0.1*) tls=(--tls-verify=false) ;; esac

push_images() { # VARIANT
  local tag arch
  for tag in "${tags[@]}"; do
    for arch in $archs; do
      case "$engine" in
        docker) docker push --quiet "$(name_of "$1"):$tag-$arch" >&2 ;;
        *) "$engine" push --quiet --format v2s2 "${tls[@]}" "$(name_of "$1"):$tag-$arch" >&2 ;;
      esac
    done
  done
}

# TAG = every architecture that was built; it replaces what had the name.
manifest() { # VARIANT
  local tag arch name each
  for tag in "${tags[@]}"; do
    name=$(name_of "$1"):$tag
    each=()
    for arch in $archs; do each+=("$name-$arch"); done
    if [ "$push" = no ] && { [ ${#each[@]} -eq 1 ] || [ "$engine" = docker ]; }; then
      # docker has lists in registries only.
      "$engine" tag "${each[0]}" "$name"
      good "$name"
      continue
    fi
    if [ "$engine" = docker ]; then
      docker buildx imagetools create --tag "$name" "${each[@]}" >&2
    else
      "$engine" manifest rm "$name" >/dev/null 2>&1 || "$engine" rmi "$name" >/dev/null 2>&1 || true
      "$engine" manifest create "$name" >/dev/null
      for arch in $archs; do
        "$engine" manifest add --arch "$arch" "$name" "containers-storage:$name-$arch" >/dev/null
      done
      [ "$push" = no ] || "$engine" manifest push --all --quiet --format v2s2 "${tls[@]}" "$name" "docker://$name" >&2
    fi
    good "$name: manifest of $archs$([ "$push" = no ] || echo ', pushed')"
  done
}

started=$SECONDS
for variant in "${variants[@]}"; do
  for arch in $archs; do
    build "$variant" "$arch"
    alias_tags "$variant" "$arch"
  done
  [ "$push" = no ] || push_images "$variant"
  [ "$manifests" = no ] || manifest "$variant"
done
say "done after $((SECONDS - started)) s"
