#!/usr/bin/env bash
# The tour: a cluster of three nodes on this machine, a mount, and ordinary programs on it; then its primary is killed
# in the middle of a copy. Everything is under one temporary directory and goes away at the end (--keep leaves it).
set -euo pipefail

bin=$(cd "${1:?usage: tour.sh BIN_DIR [--keep] [--dir D]}" && pwd)
shift
keep=no
dir=
while [[ $# -gt 0 ]]; do
  case $1 in
    --keep) keep=yes ;;
    --dir) dir=${2:?--dir wants a directory}; shift ;;
    *) echo "demo: unknown argument '$1' (known: --keep, --dir D)" >&2; exit 2 ;;
  esac
  shift
done
[[ -n $dir ]] || dir=$(mktemp -d /tmp/fermata-demo.XXXXXX)
fermata=$bin/fermata
mnt=$dir/mnt
work=$dir-files
mkdir -p "$work"

title() { printf '\n\033[1m--- %s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
fail() { printf '\ndemo: %s\n' "$*" >&2; exit 1; }

finish() {
  local code=$?
  cd /
  if [[ $keep == yes && $code -eq 0 ]]; then
    printf '\nLeft running as you asked: %s\nStop it with: %s mini stop --dir %s\n' "$mnt" "$fermata" "$dir"
    rm -rf "$work"
    return
  fi
  "$fermata" mini stop --dir "$dir" >/dev/null 2>&1 || true
  if [[ $code -ne 0 ]]; then
    printf '\nThe demo failed. Logs: %s/*.log\n' "$dir" >&2
  elif mountpoint -q "$mnt" 2>/dev/null; then
    printf '\ndemo: %s is still mounted, so nothing under it is removed\n' "$mnt" >&2
    exit 1
  else
    rm -rf "$dir" "$work"
  fi
}
trap finish EXIT

if [[ $(id -u) -ne 0 ]] && ! command -v fusermount3 >/dev/null; then
  fail "mounting needs root, or fusermount3 of the package fuse3"
fi
[[ -c /dev/fuse ]] || fail "/dev/fuse is missing: load the fuse module (modprobe fuse), or allow the device in your container"

title "Three storage nodes and a mount"
show "$fermata" mini start --dir "$dir" --mount "$mnt"

title "Files, with the tools you know"
cd "$mnt"
mkdir notes
echo "hello from a replicated filesystem" > notes/hello.txt
show cat notes/hello.txt
echo "a second line" >> notes/hello.txt
sed -i 's/hello/good day/' notes/hello.txt
show cat notes/hello.txt
ln notes/hello.txt notes/hard
ln -s hello.txt notes/soft
chmod 640 notes/hello.txt
show ls -li notes

title "A real source tree"
trees=()
for tree in include/linux include/asm-generic include/boost/asio include/rocksdb; do [[ -d /usr/$tree ]] && trees+=("$tree"); done
tar -C /usr -cf "$work/include.tar" "${trees[@]}"
mkdir src
show tar --no-same-owner -C src -xf "$work/include.tar"
files=$(find src -type f | wc -l)
echo "$files files"
(cd /usr && find "${trees[@]}" -type f -exec sha256sum {} + | sort -k2) > "$work/sums"
(cd src && sha256sum --quiet -c "$work/sums") || fail "the tree differs from what was packed"
echo "all checksums equal"

title "git"
mkdir repo
cp -r src/include/linux repo/
cd repo
show git init -q .
git config user.email demo@example.org
git config user.name Demo
show git add .
show git commit -q -m "a tree on Fermata"
show git status --short
show git fsck --strict
cd ..

title "Build a program"
mkdir build
cat > build/hello.c <<'C'
#include <stdio.h>
int main(void) { puts("built and run from the mount"); return 0; }
C
show cc -O2 -o build/hello build/hello.c
show ./build/hello

title "SQLite"
show sqlite3 db.sqlite "create table t(n integer primary key, s text);"
for i in $(seq 1 20); do sqlite3 db.sqlite "begin; insert into t(s) values('row $i'); insert into t(s) values('twin $i'); commit;"; done
show sqlite3 db.sqlite "select count(*) from t; pragma integrity_check;"

title "fio on an open file"
fio --name=tour --filename=fio.dat --size=64m --rw=randrw --bs=4k --runtime=3 --time_based --verify=0 \
  --output-format=normal 2>/dev/null | grep -E '^ +(read|write):' || fail "fio failed"
rm -f fio.dat

title "What is cached, and how the nodes are"
"$fermata" cache ls "$mnt" > "$work/cached"
head -n 6 "$work/cached"
show "$fermata" status "$dir/servers"

title "Kill the primary with SIGKILL while files are copied"
mkdir copy
(cd src/include && cp -r linux asm-generic "$mnt/copy/") &
copier=$!
sleep 0.3
show "$fermata" mini kill --dir "$dir" --node primary
killed=$(date +%s%N)
# The exit code of status is 1 while a node is down: what counts is that it names a primary.
until { "$fermata" status --no-digest --json "$dir/servers" || true; } 2>/dev/null | grep '"primary":' >/dev/null; do
  sleep 0.02
done
elected=$(date +%s%N)
echo "a new primary after $(((elected - killed) / 1000000)) ms; the copy goes on"
wait $copier || fail "the copy saw an error"
for tree in linux asm-generic; do
  (cd "src/include/$tree" && find . -type f -exec sha256sum {} + | sort -k2) > "$work/part"
  (cd "copy/$tree" && sha256sum --quiet -c "$work/part") || fail "the copy of $tree is not equal"
done
echo "the copy is complete, all checksums equal"

title "The dead node comes back"
for node in 1 2 3; do
  pid=$(cat "$dir/node$node.pid" 2>/dev/null || true)
  [[ -n $pid && -d /proc/$pid ]] || show "$fermata" mini restart --dir "$dir" --node "$node"
done
deadline=$((SECONDS + 60))
until "$fermata" digest "$dir/servers" > "$work/digest" 2>&1; do
  [[ $SECONDS -lt $deadline ]] || { cat "$work/digest"; fail "the nodes' states are not equal after a minute"; }
  sleep 0.2
done
show cat "$work/digest"
cd /
title "That was the tour"
