// What verbs ask a mount's daemon, and the JSON that it answers.
#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fermata::ctl {

struct DaemonReply {
  std::optional<boost::json::object> fields;  ///< none: said on stderr why
  int exit_code = 0;  ///< kExitUnavailable: no daemon answers; kExitError: it refused
};

/// `about`: whom the daemon's refusal is about; empty: the mount.
DaemonReply ask_daemon(const std::string& mount_point, const boost::json::object& request,
                       std::chrono::milliseconds timeout, const std::string& about = {});

/// A string as it is, a boolean as yes or no, "-" for null and for what is missing.
std::string text_of(const boost::json::object& object, const char* key);
/// 0 if there is no such number.
std::uint64_t number_of(const boost::json::object& object, const char* key);
/// The objects of a list; none if there is no such list.
std::vector<boost::json::object> objects_of(const boost::json::object& object, const char* key);

}  // namespace fermata::ctl
