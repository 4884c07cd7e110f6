// Starting and finding mount daemons.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "ctl/commands.h"

namespace fermata::ctl {

struct MountRequest {
  std::vector<std::string> servers;
  std::string path = "/";
  std::string mount_point;  ///< absolute; made if it is missing
  std::string cache_dir;    ///< empty: default_cache_dir()
  std::string pidfile;      ///< empty: CACHE/mountd.pid
  std::string log;          ///< empty: CACHE/mountd.log
  std::vector<std::string> options;
  bool foreground = false;
};

/// Starts fermata-mountd and returns when the mount answers. The exit code for the verb.
int mount_in_background(const Context& context, const MountRequest& request);

/// Where the cache of a mount point lies unless the user says otherwise: below /var/cache/fermata
/// for root, below XDG_CACHE_HOME for others; one directory a mount point.
std::string default_cache_dir(const std::string& mount_point);

/// The cache directory of a live mount (found by its mount record), to reach the daemon's control
/// socket.
Result<std::string> cache_dir_of(const std::string& mount_point);

/// A mount whose daemon is gone: whoever looks there gets ENOTCONN.
bool is_dead_mount(const std::string& mount_point);

/// Asks the daemon of a mount: one JSON object in, one out.
Result<std::string> ask_mount(const std::string& mount_point, const std::string& request_json,
                              std::chrono::milliseconds timeout);

/// Asks the daemon of a mount to commit what is dirty and to end, and waits until the mount is
/// gone; says so if that takes long. What the daemon tells about what is left, for
/// complain_left(). Errors: ETIMEDOUT when the mount is still there after `patience`; others when
/// the daemon ended without an answer.
Result<boost::json::object> end_mount(const std::string& mount_point,
                                      std::chrono::milliseconds patience);

/// Says on stderr which files could not be committed and why, and where conflicts are. True if
/// there are files of the first kind, or conflicts that are new; `when` says when the first kind is
/// committed after all.
bool complain_left(const boost::json::object& told, const std::string& when);
/// The same of a mount that has ended.
bool complain_left_in(const std::string& cache_dir, const boost::json::object& told);

/// Says that a daemon ended without telling what it left.
void complain_ended(const std::string& mount_point, const std::string& cache_dir);

/// Mount points here whose daemon was given one of `servers`.
std::vector<std::string> mounts_of(const std::vector<std::string>& servers);

/// As umount(8) has it: whoever works there would go on with a file that nobody commits. The first
/// MNT_EXPIRE of a mount only says whether it is in use (umount(2)); without the right to ask, no.
bool in_use(const std::string& mount_point);

/// Takes a mount away without waiting for whoever uses it.
bool detach(const std::string& mount_point);

}  // namespace fermata::ctl
