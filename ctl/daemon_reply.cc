#include "ctl/daemon_reply.h"

#include <boost/json.hpp>
#include <filesystem>

#include "ctl/commands.h"
#include "ctl/mounting.h"
#include "ctl/process.h"

namespace fermata::ctl {
namespace json = boost::json;

namespace {
std::string why_no_answer(const std::string& mount_point, std::error_code error) {
  if (error == std::errc::permission_denied)
    return "only root, and who mounted it, may ask its daemon";
  if (error != std::errc::no_such_process) return "its daemon does not answer: " + error.message();
  std::error_code unknown;
  const std::string path = std::filesystem::weakly_canonical(mount_point, unknown).string();
  std::string above;
  for (const std::string& mount : fermata_mounts())
    if (path.starts_with(mount + "/") && mount.size() > above.size()) above = mount;
  if (!above.empty() && !path.ends_with('/')) return "that is below the mount point: say " + above;
  return "no mount daemon of Fermata serves it";
}
}  // namespace

DaemonReply ask_daemon(const std::string& mount_point, const json::object& request,
                       std::chrono::milliseconds timeout, const std::string& about) {
  const SlowNote note("waiting for the daemon of " + mount_point + ", or for the cluster");
  const auto answer = ask_mount(mount_point, json::serialize(request), timeout);
  if (!answer) {
    complain(mount_point + ": " + why_no_answer(mount_point, answer.error()));
    return {{}, kExitUnavailable};
  }
  std::error_code error;
  json::value reply = json::parse(*answer, error);
  if (error || !reply.is_object()) {
    complain("the daemon of " + mount_point + " answered nonsense");
    return {{}, kExitUnavailable};
  }
  if (const json::value* failed = reply.as_object().if_contains("error");
      failed != nullptr && failed->is_string()) {
    complain((about.empty() ? mount_point : about) + ": " + std::string(failed->as_string()));
    return {{}, kExitError};
  }
  return {std::move(reply.as_object()), kExitOk};
}

std::string text_of(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return "-";
  if (value->is_string()) return std::string(value->as_string());
  if (value->is_bool()) return value->as_bool() ? "yes" : "no";
  return json::serialize(*value);
}

std::uint64_t number_of(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return 0;
  std::error_code error;
  const auto number = value->to_number<std::uint64_t>(error);
  return error ? 0 : number;
}

std::vector<json::object> objects_of(const json::object& object, const char* key) {
  std::vector<json::object> out;
  const json::value* list = object.if_contains(key);
  if (list == nullptr || !list->is_array()) return out;
  for (const json::value& value : list->as_array())
    if (value.is_object()) out.push_back(value.as_object());
  return out;
}

}  // namespace fermata::ctl
