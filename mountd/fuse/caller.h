// What /proc says of the thread whose request we hold.
//
// FUSE sends one INTERRUPT for the first signal of a waiting caller, whatever it is, and none for a
// later one. A signal that the program handles (a timer, a child's end) must not turn a mkdir into
// EINTR, which no local filesystem does; one that kills it must not wait for us.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace fermata::mountd {

/// SIGKILL is pending for it (the kernel turns every fatal signal into one), or it is gone.
/// True for thread id 0, a caller of whom nothing can be seen: its interrupts count.
bool is_being_killed(pid_t thread);
/// Its supplementary groups; none of a caller of whom nothing can be seen.
std::vector<std::uint32_t> groups_of(pid_t thread);
/// A signal that it does not block is pending for it. False if nothing can be seen of it.
bool has_signal(pid_t thread);
/// It has CAP_SYS_ADMIN (capabilities(7)); a caller of whom nothing can be seen has it as user 0.
bool may_administrate(uid_t user, pid_t thread);
/// A signal has killed it and it is closing its files: no further signal reaches it there.
bool is_dying(pid_t thread);
/// It is in fcntl(2) with F_OFD_SETLK or F_OFD_SETLKW. False also if that cannot be seen
/// (/proc/PID/syscall, proc(5)).
bool asks_for_ofd_lock(pid_t thread);

}  // namespace fermata::mountd
