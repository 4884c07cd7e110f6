// The replicated commands as bytes (schema/command.capnp).
#pragma once

#include <string>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/wire/commands.h"

namespace fermata {

std::string encode(const Command& command);
/// kBadMessage: malformed; kUnsupported: a command of a newer version.
Result<Command> decode_command(ByteView bytes);

std::string encode(const CommandResult& result);
Result<CommandResult> decode_command_result(ByteView bytes);

}  // namespace fermata
