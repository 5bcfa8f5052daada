#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/options.h"

// What was given and has no effect here, said once in the log.

namespace m2::app {

// One line of the log for each of `variables` ("NAME=value") that belongs to this family of
// servers (VLLM_...) and that no option of `options` reads: why it has no effect here, or that
// nobody knows it.
std::vector<std::string> notes_on_environment(const char* const* variables,
                                              std::span<const Option> options);

// One line for each option that was given and has no effect here (its help begins with
// "Accepted").
std::vector<std::string> notes_on_options(const Values& values, std::span<const Option> options);

}  // namespace m2::app
