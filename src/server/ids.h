#pragma once

#include <string>

namespace m2::server {

// 32 hex digits nobody can guess: ids of what may be asked for later by whoever knows them.
std::string random_hex();

std::string response_call_id();  // call_...
std::string tool_use_id();       // toolu_...

}  // namespace m2::server
