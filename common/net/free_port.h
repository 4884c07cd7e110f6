// Ports for servers that are to keep them over restarts.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"

namespace fermata {

/// `count` different TCP ports on which nobody listens at 127.0.0.1, chosen at random below the
/// range from which the kernel takes the source ports of connections (ip(7), ip_local_port_range):
/// so that no connection takes the port of a server that is down for a moment. Errors:
/// EADDRINUSE if so many were not found; what socket(2) gives. Blocks for some microseconds.
Result<std::vector<std::uint16_t>> free_loopback_ports(std::size_t count);

}  // namespace fermata
