#pragma once

#include "app/options.h"
#include "base/result.h"

namespace m2::app::eval {

// `m2 eval`: asks a server or a checkpoint the items of files and prints how many it answers right.
const Command& eval_command();
Result<void> run_eval(const Values& values);

}  // namespace m2::app::eval
