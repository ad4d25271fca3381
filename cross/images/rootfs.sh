#!/bin/sh
# The machine that builds → a folder with what the scratch images hold beside the binary.
#
#   rootfs.sh FOLDER
set -eu
root=$1

# The old image had no folders and no names. With them an application runs as archer (what the wrapper
# does as root with no user named), and sockets and spool have a place.
install -d -m 755 "$root/etc/ssl/certs" "$root/etc/agent" "$root/usr/local/bin" "$root/usr/share"
install -d -m 700 "$root/root"
install -d -m 1777 "$root/tmp"
install -d -m 755 -o 1000 -g 1000 "$root/home/archer" "$root/run/agent" "$root/var/lib/agent"

cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/usr/local/bin/agent
archer:x:1000:1000:archer:/home/archer:/usr/local/bin/agent
nobody:x:65534:65534:nobody:/:/usr/local/bin/agent
END
cat >"$root/etc/group" <<'END'
root:x:0:
archer:x:1000:
nogroup:x:65534:
END

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# Run markers are in local time: TZ=Europe/Zurich has to mean something here too.
cp -a /usr/share/zoneinfo "$root/usr/share/zoneinfo"
rm -rf "$root/usr/share/zoneinfo/right" "$root/usr/share/zoneinfo/posix"
rm -f "$root/usr/share/zoneinfo/"*.tab "$root/usr/share/zoneinfo/"*.list "$root/usr/share/zoneinfo/leapseconds" \
  "$root/usr/share/zoneinfo/tzdata.zi" "$root/usr/share/zoneinfo/localtime"

ln -s agent "$root/usr/local/bin/wrapp"
ln -s agent "$root/usr/local/bin/jettison_health"
