// The usual headers and CLI11, compiled once for the programs.
#pragma once

#include <CLI/CLI.hpp>

#include "common/base/pch.h"
