#include "serverd/store/kv_store.h"

namespace fermata::serverd {

const char* to_string(Family family) {
  switch (family) {
    case Family::kCounters:
      return "counters";
    case Family::kInodes:
      return "inodes";
    case Family::kDentries:
      return "dentries";
    case Family::kCookies:
      return "cookies";
    case Family::kXattrs:
      return "xattrs";
    case Family::kInline:
      return "inline";
    case Family::kChunks:
      return "chunks";
    case Family::kPatches:
      return "patches";
    case Family::kSessions:
      return "sessions";
    case Family::kClients:
      return "clients";
    case Family::kHosts:
      return "hosts";
    case Family::kRequests:
      return "requests";
    case Family::kOrphans:
      return "orphans";
    case Family::kChunkRefs:
      return "chunk_refs";
    case Family::kGarbage:
      return "garbage";
    case Family::kHistory:
      return "history";
    case Family::kHistoryIndex:
      return "history_index";
    case Family::kConflicts:
      return "conflicts";
    case Family::kLocks:
      return "locks";
  }
  return "unknown";
}

std::string prefix_end(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 0xff) end.pop_back();
  if (!end.empty()) end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  return end;
}

}  // namespace fermata::serverd
