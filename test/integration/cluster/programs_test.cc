// Programs that people run.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

void must(const std::string& command, std::chrono::seconds timeout = std::chrono::seconds(300)) {
  const RunResult result = run(command, timeout);
  CAPTURE(command, result.out);
  REQUIRE(result.exit_code == 0);
}

TEST_CASE("programs: tar, git, cc, sqlite, rsync, fio on a mount", "[programs]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string mnt = cluster.mnt();

  must("cd " + mnt +
       "; mkdir src; tar -C /usr/include -cf - linux | tar --no-same-owner -C src -xf -; "
       "diff -r /usr/include/linux src/linux");
  must("cd " + mnt + "; cp -a src copy; diff -r src copy; rm -rf copy; test ! -e copy");
  must("cd " + mnt +
       "/src; export GIT_AUTHOR_NAME=T GIT_AUTHOR_EMAIL=t@example.org GIT_COMMITTER_NAME=T "
       "GIT_COMMITTER_EMAIL=t@example.org; git init -q .; git add .; git commit -qm one; echo x >> "
       "linux/fs.h; "
       "git commit -qam two; test -z \"$(git status --porcelain)\"; git fsck --strict; git gc -q; "
       "git fsck; "
       "git clone -q . ../clone; cd ../clone; git log --oneline | wc -l | grep -qx 2");
  must("cd " + mnt +
       "; printf 'int main(void){return 0;}' > p.c; cc -o p p.c; ./p; cc -O1 -g -o p p.c; ./p");
  must("cd " + mnt +
       "; sqlite3 db 'create table t(a)'; for i in $(seq 30); do sqlite3 db \"insert into t "
       "values($i)\"; "
       "done; test $(sqlite3 db 'select sum(a) from t') = 465; sqlite3 db 'pragma integrity_check' "
       "| grep -qx ok");
  must("cd " + mnt +
       "; sqlite3 wal 'pragma journal_mode=wal; create table t(a); insert into t values(1); select "
       "* from t'");
  must("cd " + mnt +
       "; rsync -aHAX src/ synced/ --exclude .git; "
       "test -z \"$(rsync -aHAXi src/ synced/ --exclude .git)\"");
  must("cd " + mnt +
       "; fio --name=v --filename=fio.dat --size=16m --rw=randwrite --bs=4k --verify=crc32c "
       "--do_verify=1 "
       "--ioengine=psync --output=/dev/null; rm fio.dat");
  must("cd " + mnt +
       "; fio --name=v --filename=fio.dat --size=8m --rw=randwrite --bs=4k --verify=crc32c "
       "--do_verify=1 "
       "--ioengine=mmap --output=/dev/null; rm fio.dat");
  const std::string other = cluster.mount_another(options);
  must("diff -r " + mnt + "/src/linux " + other + "/src/linux; sqlite3 " + other +
       "/db 'pragma integrity_check' | grep -qx ok");
  CHECK(cluster.digests_equal());
}

TEST_CASE("programs: overlayfs, stress-ng, dbench, venv, packages, ninja on a mount",
          "[programs]") {
  FM_NEEDS_MOUNTS();
  const std::string options =
      GENERATE(std::string("dev,suid"), std::string("dev,suid,nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string mnt = cluster.mnt();

  // Its upper layer: whiteouts, opaque directories, copies up. Where the kernel has overlayfs.
  must("grep -qw overlay /proc/filesystems || modprobe -q overlay || exit 0; cd " + mnt +
       "; mkdir lower upper work merged; cp -r /usr/include/linux/netfilter lower/n; "
       "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged; cd merged; "
       "trap 'cd /; umount -l " +
       mnt +
       "/merged' EXIT; "
       "echo new > n/new; echo more >> n/nf_tables.h; rm n/nfnetlink.h; mv n/nf_log.h n/moved.h; "
       "test ! -e n/nfnetlink.h; test \"$(tail -1 n/nf_tables.h)\" = more; rm -r n; mkdir n; "
       "test -z \"$(ls n)\"; test -e ../lower/n/nfnetlink.h");
  // Without getdent, which lists all of /tmp and so keeps other tests' mounts in use.
  must("cd " + mnt +
       "; mkdir stress; for s in access chmod chown copy-file dentry dir dirdeep fallocate fcntl "
       "filename flock fpunch iomix link lockf lockofd mknod open rename seek "
       "symlink "
       "sync-file utime xattr; do stress-ng --$s 1 --timeout 1 --verify --temp-path stress; done");
  must("cd " + mnt + "; mkdir db; dbench -t 3 -D db 2");
  must("cd " + mnt + "; python3 -m venv v; v/bin/python -c 'import sqlite3, json'");
  // A package made there, unpacked there and on the local disk.
  must("cd " + mnt +
       "; mkdir -p p/DEBIAN p/usr/share/doc/p; cp -r /usr/include/linux p/usr/share/doc/p/; "
       "printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\n"
       "Description: p\n' > p/DEBIAN/control; dpkg-deb -b p p.deb > /dev/null; "
       "dpkg-deb -x p.deb here; dpkg-deb -x p.deb " +
       cluster.dir() + "/there; diff -r here " + cluster.dir() + "/there");
  must("cd " + mnt +
       "; mkdir n; cd n; for i in $(seq 40); do echo \"int f$i(int x) { return x + $i; }\" > "
       "f$i.cc; "
       "done; echo 'int main() { return 0; }' > main.cc; "
       "printf 'cmake_minimum_required(VERSION 3.20)\\nproject(p CXX)\\nfile(GLOB s *.cc)\\n"
       "add_executable(p ${s})\\n' > CMakeLists.txt; cmake -G Ninja -B b . > /dev/null; "
       "ninja -C b -j4 > /dev/null; b/p; ninja -C b -j4 > out; grep -q 'no work to do' out; "
       "touch f3.cc; ninja -C b -j4 > out; grep -q 'f3.cc' out; ninja -C b -j4 > out; "
       "grep -q 'no work to do' out");
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
