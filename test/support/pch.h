// The usual headers and Catch2, compiled once for the tests.
#pragma once

#include <catch2/catch_test_macros.hpp>

#include "common/base/pch.h"
