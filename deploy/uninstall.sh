#!/usr/bin/env bash
# Remove the ffedge service. Samples, weights and settings stay, unless --purge is given.
set -euo pipefail

say() { printf 'ffedge: %s\n' "$*"; }
fail() {
  printf 'ffedge: %s\n' "$*" >&2
  exit 1
}

root='' purge=no
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) echo "usage: sudo deploy/uninstall.sh [--purge] [--root DIR]"; exit 0 ;;
    --purge) purge=yes; shift ;;
    --root)
      # An empty one, of a variable that is not set, would mean this very system.
      [ -n "${2-}" ] || fail "--root wants a directory"
      root=${2%/}
      shift 2
      ;;
    *) fail "unknown option $1: there are --purge and --root DIR" ;;
  esac
done

[ "$(id -u)" -eq 0 ] || fail "needs root: sudo $0"
for file in passwd group; do
  [ -f "$root/etc/$file" ] || fail "$root holds no /etc/$file: --root wants a root file system"
done
# Root may write to whatever is not read-only.
for folder in "$root/etc" "$root/etc/systemd/system" "$root/opt" "$root/var" "$root/var/lib"; do
  [ ! -d "$folder" ] || [ -w "$folder" ] || fail "$folder is read-only: mount it writable first"
done

unit=$root/etc/systemd/system/ffedge.service
installed=("$unit" "$root/opt/ffedge" "$root/var/cache/ffedge")
[ $purge = no ] || installed+=("$root/var/lib/ffedge" "$root/etc/ffedge" "$unit.d")
if [ -z "$(find "${installed[@]}" -maxdepth 0 2>/dev/null || true)" ] &&
  { [ $purge = no ] || ! grep -q '^ffedge:' "$root/etc/passwd" "$root/etc/group"; }; then
  say "nothing is installed in ${root:-/}"
  exit 0
fi
if [ -e "$unit" ] && command -v systemctl >/dev/null; then
  systemctl ${root:+--root="$root"} --quiet disable ffedge.service
  if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl stop ffedge.service
  fi
fi
rm -f "$unit"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
rm -rf "$root/opt/ffedge" "$root/var/cache/ffedge"
if [ $purge = no ]; then
  say "removed; kept $root/var/lib/ffedge, $root/etc/ffedge and the user ffedge (--purge removes them)"
  exit 0
fi
rm -rf "$root/var/lib/ffedge" "$root/etc/ffedge" "$unit.d"
if grep -q '^ffedge:' "$root/etc/passwd"; then
  userdel ${root:+--prefix "$root"} ffedge
fi
if grep -q '^ffedge:' "$root/etc/group"; then # userdel takes a user's own group along, where told to
  groupdel ${root:+--prefix "$root"} ffedge
fi
say "removed, with its samples, weights and settings"
