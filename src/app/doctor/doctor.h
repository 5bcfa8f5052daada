#pragma once

#include "app/options.h"

namespace m2::app {

// `m2 doctor`: can this machine run the model, and does it compute what it should?
const Command& doctor_command();

// Prints one line for each check; an error if any of them failed.
Result<void> run_doctor(const Values& values);

}  // namespace m2::app
