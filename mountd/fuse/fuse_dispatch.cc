// From libfuse's callbacks to Operations. libfuse decodes a request and calls one of these inside
// SessionCore::process(), so the raw request is at hand for the fields that libfuse leaves out.
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include <cstring>

#include "common/base/assert.h"
#include "mountd/fuse/session_core.h"

namespace fermata::mountd {
namespace {

constexpr NodeHandle node_of(fuse_ino_t ino) { return NodeHandle{ino}; }

}  // namespace

class RequestDispatcher {
 public:
  static fuse_lowlevel_ops table(bool with_locks);

 private:
  static SessionCore& core(fuse_req_t request) {
    return *static_cast<SessionCore*>(fuse_req_userdata(request));
  }
  /// The request being processed on this loop.
  static const abi::InHeader& header(fuse_req_t request) {
    const auto* raw = core(request).state().request;
    FM_ASSERT(raw != nullptr);
    return *raw;
  }
  static RequestContext context(fuse_req_t request) {
    const auto& raw = header(request);
    const auto umask = core(request).acls() ? fuse_req_ctx(request)->umask : mode_t{0};
    return {raw.uid, raw.gid, static_cast<pid_t>(raw.pid), raw.unique, umask};
  }
  /// The fixed part behind the header; libfuse has checked nothing about its size, so this does.
  template <class T>
  static T body(fuse_req_t request) {
    const auto& raw = header(request);
    T value{};
    if (raw.size >= sizeof raw + sizeof value) std::memcpy(&value, &raw + 1, sizeof value);
    return value;
  }
  template <class R, class... Extra>
  static R reply(fuse_req_t request, const char* operation, Extra... extra) {
    auto& session = core(request);
    const auto loop = session.loops_.current();
    FM_ASSERT(loop);
    auto& state = session.state(*loop);
    state.operation = operation;
    return R(session.shared_from_this(), request, operation, state.request->unique, *loop,
             extra...);
  }

  static void init(void* userdata, fuse_conn_info* connection);
  static void setattr(fuse_req_t request, fuse_ino_t ino, struct stat* attr, int to_set,
                      fuse_file_info* file);
  static void open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* file);
  static void create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
                     fuse_file_info* file);
  static void write(fuse_req_t request, fuse_ino_t ino, const char* data, std::size_t size,
                    off_t offset, fuse_file_info* file);
  static void forget_multi(fuse_req_t request, std::size_t count, fuse_forget_data* forgets);
  static void add_locks(fuse_lowlevel_ops& ops);
};

void RequestDispatcher::init(void* userdata, fuse_conn_info* connection) {
  auto& session = *static_cast<SessionCore*>(userdata);
  // Writes through the page cache (WRITEBACK_CACHE) exclude passthrough; the kernel's data is
  // dropped only when we say so (EXPLICIT_INVAL_DATA).
  unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_EXPORT_SUPPORT |
                    FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_SPLICE_READ |
                    FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ASYNC_DIO |
                    FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_CACHE_SYMLINKS |
                    FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_EXPIRE_ONLY;
  if (session.operations_.wants_locks()) wanted |= FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS;
  connection->want = connection->capable & wanted;
  connection->max_write = std::min(connection->max_write, kWriteSizeMax);
  connection->max_background = 64;
  connection->congestion_threshold = 48;
  connection->time_gran = 1;
  session.operations_.init(session.negotiate(connection->max_write));
}

void RequestDispatcher::setattr(fuse_req_t request, fuse_ino_t ino, struct stat* attr, int,
                                fuse_file_info* file) {
  SetAttributes change;
  change.valid = body<abi::SetattrIn>(request).valid &  // libfuse 3.14 drops the kill flag
                 (kSetMode | kSetUid | kSetGid | kSetSize | kSetAtime | kSetMtime | kSetAtimeNow |
                  kSetMtimeNow | kSetCtime | kSetKillSuidGid);
  // A write to a passthrough file that must drop setuid and setgid arrives as a change of nothing.
  if (change.valid == 0) change.valid = kSetKillSuidGid;
  change.mode = attr->st_mode;
  change.uid = attr->st_uid;
  change.gid = attr->st_gid;
  change.size_bytes = static_cast<std::uint64_t>(attr->st_size);
  change.atime = attr->st_atim;
  change.mtime = attr->st_mtim;
  change.ctime = attr->st_ctim;
  if (file != nullptr) change.fh = file->fh;
  core(request).operations_.setattr(context(request), node_of(ino), change,
                                    reply<AttrReply>(request, "setattr"));
}

void RequestDispatcher::open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* file) {
  const OpenRequest what{file->flags,
                         (body<abi::OpenIn>(request).open_flags & abi::kOpenKillSuidgid) != 0};
  core(request).operations_.open(context(request), node_of(ino), what,
                                 reply<OpenReply>(request, "open", node_of(ino)));
}

void RequestDispatcher::create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
                               fuse_file_info* file) {
  const CreateRequest what{mode, file->flags,
                           (body<abi::CreateIn>(request).open_flags & abi::kOpenKillSuidgid) != 0};
  if (core(request).state().opcode == abi::kTmpfile) {
    return core(request).operations_.tmpfile(context(request), node_of(parent), what,
                                             reply<CreateReply>(request, "tmpfile"));
  }
  core(request).operations_.create(context(request), node_of(parent), name, what,
                                   reply<CreateReply>(request, "create"));
}

void RequestDispatcher::write(fuse_req_t request, fuse_ino_t ino, const char* data,
                              std::size_t size, off_t offset, fuse_file_info* file) {
  const WriteRequest what{file->fh,
                          static_cast<std::uint64_t>(offset),
                          as_bytes({data, size}),
                          (body<abi::WriteIn>(request).write_flags & abi::kWriteKillSuidgid) != 0,
                          file->writepage != 0,
                          (file->flags & O_APPEND) != 0 && file->writepage == 0};
  core(request).operations_.write(context(request), node_of(ino), what,
                                  reply<WriteReply>(request, "write"));
}

void RequestDispatcher::forget_multi(fuse_req_t request, std::size_t count,
                                     fuse_forget_data* forgets) {
  std::vector<Forget> nodes;
  nodes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    nodes.push_back({node_of(forgets[i].ino), forgets[i].nlookup});
  }
  core(request).operations_.forget_batch(nodes);
  fuse_reply_none(request);
}

fuse_lowlevel_ops RequestDispatcher::table(bool with_locks) {
  fuse_lowlevel_ops ops{};
  ops.init = init;
  ops.lookup = [](fuse_req_t r, fuse_ino_t parent, const char* name) {
    core(r).operations_.lookup(context(r), node_of(parent), name, reply<EntryReply>(r, "lookup"));
  };
  ops.forget = [](fuse_req_t r, fuse_ino_t ino, std::uint64_t count) {
    core(r).operations_.forget(node_of(ino), count);
    fuse_reply_none(r);
  };
  ops.forget_multi = forget_multi;
  ops.getattr = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file) {
    std::optional<std::uint64_t> fh;
    if (file != nullptr) fh = file->fh;
    if (core(r).state().opcode == abi::kStatx) {
      return core(r).operations_.statx(context(r), node_of(ino), fh, reply<StatxReply>(r, "statx"));
    }
    core(r).operations_.getattr(context(r), node_of(ino), fh, reply<AttrReply>(r, "getattr"));
  };
  ops.setattr = setattr;
  ops.readlink = [](fuse_req_t r, fuse_ino_t ino) {
    core(r).operations_.readlink(context(r), node_of(ino), reply<ReadlinkReply>(r, "readlink"));
  };
  ops.mknod = [](fuse_req_t r, fuse_ino_t parent, const char* name, mode_t mode, dev_t rdev) {
    core(r).operations_.mknod(context(r), node_of(parent), name, mode, rdev,
                              reply<EntryReply>(r, "mknod"));
  };
  ops.mkdir = [](fuse_req_t r, fuse_ino_t parent, const char* name, mode_t mode) {
    core(r).operations_.mkdir(context(r), node_of(parent), name, mode,
                              reply<EntryReply>(r, "mkdir"));
  };
  ops.unlink = [](fuse_req_t r, fuse_ino_t parent, const char* name) {
    core(r).operations_.unlink(context(r), node_of(parent), name, reply<StatusReply>(r, "unlink"));
  };
  ops.rmdir = [](fuse_req_t r, fuse_ino_t parent, const char* name) {
    core(r).operations_.rmdir(context(r), node_of(parent), name, reply<StatusReply>(r, "rmdir"));
  };
  ops.symlink = [](fuse_req_t r, const char* target, fuse_ino_t parent, const char* name) {
    core(r).operations_.symlink(context(r), node_of(parent), name, target,
                                reply<EntryReply>(r, "symlink"));
  };
  ops.rename = [](fuse_req_t r, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
                  const char* new_name, unsigned flags) {
    core(r).operations_.rename(context(r), node_of(parent), name, node_of(new_parent), new_name,
                               flags, reply<StatusReply>(r, "rename"));
  };
  ops.link = [](fuse_req_t r, fuse_ino_t ino, fuse_ino_t new_parent, const char* new_name) {
    core(r).operations_.link(context(r), node_of(ino), node_of(new_parent), new_name,
                             reply<EntryReply>(r, "link"));
  };
  ops.open = open;
  ops.create = create;
  ops.read = [](fuse_req_t r, fuse_ino_t ino, std::size_t size, off_t offset,
                fuse_file_info* file) {
    core(r).operations_.read(context(r), node_of(ino), file->fh, static_cast<std::uint64_t>(offset),
                             size, reply<ReadReply>(r, "read"));
  };
  ops.write = write;
  ops.flush = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file) {
    core(r).operations_.flush(context(r), node_of(ino), file->fh, file->lock_owner,
                              reply<StatusReply>(r, "flush"));
  };
  ops.release = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file) {
    const ReleaseRequest what{file->fh, file->flags, file->lock_owner, file->flock_release != 0};
    core(r).operations_.release(context(r), node_of(ino), what, reply<StatusReply>(r, "release"));
  };
  ops.fsync = [](fuse_req_t r, fuse_ino_t ino, int data_only, fuse_file_info* file) {
    core(r).operations_.fsync(context(r), node_of(ino), file->fh, data_only != 0,
                              reply<StatusReply>(r, "fsync"));
  };
  ops.fallocate = [](fuse_req_t r, fuse_ino_t ino, int mode, off_t offset, off_t size,
                     fuse_file_info* file) {
    core(r).operations_.fallocate(
        context(r), node_of(ino), file->fh, mode, static_cast<std::uint64_t>(offset),
        static_cast<std::uint64_t>(size), reply<StatusReply>(r, "fallocate"));
  };
  ops.lseek = [](fuse_req_t r, fuse_ino_t ino, off_t offset, int whence, fuse_file_info* file) {
    core(r).operations_.lseek(context(r), node_of(ino), file->fh,
                              static_cast<std::uint64_t>(offset), whence,
                              reply<LseekReply>(r, "lseek"));
  };
  ops.copy_file_range = [](fuse_req_t r, fuse_ino_t ino_in, off_t offset_in, fuse_file_info* in,
                           fuse_ino_t ino_out, off_t offset_out, fuse_file_info* out,
                           std::size_t size, int) {
    const CopyRange range{node_of(ino_in),
                          in->fh,
                          static_cast<std::uint64_t>(offset_in),
                          node_of(ino_out),
                          out->fh,
                          static_cast<std::uint64_t>(offset_out),
                          size};
    core(r).operations_.copy_file_range(context(r), range, reply<WriteReply>(r, "copy_file_range"));
  };
  ops.ioctl = [](fuse_req_t r, fuse_ino_t ino, unsigned command, void*, fuse_file_info* file,
                 unsigned, const void* in, std::size_t in_size, std::size_t out_size) {
    core(r).operations_.ioctl(context(r), node_of(ino), file->fh, command,
                              {static_cast<const std::byte*>(in), in_size}, out_size,
                              reply<IoctlReply>(r, "ioctl"));
  };
  ops.opendir = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file) {
    core(r).operations_.opendir(context(r), node_of(ino), file->flags,
                                reply<OpenReply>(r, "opendir", node_of(ino)));
  };
  ops.readdir = [](fuse_req_t r, fuse_ino_t ino, std::size_t size, off_t cookie,
                   fuse_file_info* file) {
    core(r).operations_.readdir(context(r), node_of(ino), file->fh,
                                static_cast<std::uint64_t>(cookie),
                                reply<DirReply>(r, "readdir", size, false));
  };
  ops.readdirplus = [](fuse_req_t r, fuse_ino_t ino, std::size_t size, off_t cookie,
                       fuse_file_info* file) {
    core(r).operations_.readdir(context(r), node_of(ino), file->fh,
                                static_cast<std::uint64_t>(cookie),
                                reply<DirReply>(r, "readdirplus", size, true));
  };
  ops.releasedir = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file) {
    core(r).operations_.releasedir(context(r), node_of(ino), file->fh,
                                   reply<StatusReply>(r, "releasedir"));
  };
  ops.fsyncdir = [](fuse_req_t r, fuse_ino_t ino, int data_only, fuse_file_info* file) {
    core(r).operations_.fsyncdir(context(r), node_of(ino), file->fh, data_only != 0,
                                 reply<StatusReply>(r, "fsyncdir"));
  };
  ops.statfs = [](fuse_req_t r, fuse_ino_t ino) {
    core(r).operations_.statfs(context(r), node_of(ino), reply<StatfsReply>(r, "statfs"));
  };
  ops.setxattr = [](fuse_req_t r, fuse_ino_t ino, const char* name, const char* value,
                    std::size_t size, int flags) {
    const SetXattr what{name, as_bytes({value, size}), flags, core(r).state().kill_sgid};
    core(r).operations_.setxattr(context(r), node_of(ino), what, reply<StatusReply>(r, "setxattr"));
  };
  ops.getxattr = [](fuse_req_t r, fuse_ino_t ino, const char* name, std::size_t size) {
    core(r).operations_.getxattr(context(r), node_of(ino), name,
                                 reply<XattrReply>(r, "getxattr", size));
  };
  ops.listxattr = [](fuse_req_t r, fuse_ino_t ino, std::size_t size) {
    core(r).operations_.listxattr(context(r), node_of(ino),
                                  reply<XattrReply>(r, "listxattr", size));
  };
  ops.removexattr = [](fuse_req_t r, fuse_ino_t ino, const char* name) {
    core(r).operations_.removexattr(context(r), node_of(ino), name,
                                    reply<StatusReply>(r, "removexattr"));
  };
  if (with_locks) add_locks(ops);
  return ops;
}

void RequestDispatcher::add_locks(fuse_lowlevel_ops& ops) {
  ops.getlk = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file, struct flock* range) {
    core(r).operations_.getlk(context(r), node_of(ino), {file->fh, file->lock_owner, *range, false},
                              reply<LockReply>(r, "getlk"));
  };
  ops.setlk = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file, struct flock* range,
                 int wait) {
    core(r).operations_.setlk(context(r), node_of(ino),
                              {file->fh, file->lock_owner, *range, wait != 0},
                              reply<StatusReply>(r, "setlk"));
  };
  ops.flock = [](fuse_req_t r, fuse_ino_t ino, fuse_file_info* file, int operation) {
    core(r).operations_.flock(context(r), node_of(ino), file->fh, file->lock_owner, operation,
                              reply<StatusReply>(r, "flock"));
  };
}

namespace {

ssize_t write_hook(int, iovec* parts, int count, void* userdata) {
  return static_cast<SessionCore*>(userdata)->write_reply(parts, count);
}

ssize_t read_hook(int, void*, std::size_t, void*) {
  errno = ENOTSUP;  // the transport reads
  return -1;
}

}  // namespace

fuse_session* new_libfuse_session(SessionCore& core, const std::vector<std::string>& options) {
  std::vector<char*> arguments;
  std::string program = "fermata-mountd";
  arguments.push_back(program.data());
  std::vector<std::string> copy = options;
  for (auto& each : copy) arguments.push_back(each.data());
  fuse_args args = FUSE_ARGS_INIT(static_cast<int>(arguments.size()), arguments.data());
  const auto ops = RequestDispatcher::table(core.operations_.wants_locks());
  auto* session = fuse_session_new(&args, &ops, sizeof ops, &core);
  fuse_opt_free_args(&args);
  return session;
}

int attach_libfuse_io(fuse_session* session, int unused_fd) {
  fuse_custom_io io{};
  io.writev = write_hook;
  io.read = read_hook;
  return fuse_session_custom_io(session, &io, unused_fd);
}

}  // namespace fermata::mountd
