#pragma once

namespace m2::app {

// The program `m2`: reads the subcommand and its flags, runs it, and returns the exit status.
// Never throws.
int run(int argc, char** argv);

}  // namespace m2::app
