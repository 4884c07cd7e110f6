// Directories that a mount has alone (docs/adr/0010-exclusive-directories.md), in tests.
#pragma once

#include <string>

#include "test/support/mini_cluster.h"

namespace fermata::test {

/// What became of files on a mount, by the words of `fermata cache stat`.
long happened(MiniCluster& cluster, const std::string& mnt, const char* what);

/// Files that the mount made by itself.
long made_here(MiniCluster& cluster, const std::string& mnt);

/// Makes and removes files in `directory` until the mount has it alone.
void have_alone(MiniCluster& cluster, const std::string& mnt, const std::string& directory);

}  // namespace fermata::test
