#pragma once

#include <string>
#include <vector>

#include "app/doctor/lab.h"

namespace m2::app::doctor {

// What came of one operation, over all its cases.
struct Finding {
  std::string name;
  int64_t numbers = 0;    // compared
  double off = 0;         // |out - expected| / |expected| of the worst case
  double of_allowed = 0;  // the worst of all limits, as a share of it; not above 1 is right
  bool good() const { return of_allowed <= 1; }  // NaN is not
};

// Every operation on small inputs of random numbers, in the shapes that reach the device's forms of
// it (few tokens and many, slices, every dtype), against reference.h. One table for every device:
// what differs by device is the activations' dtype and with it the limits. Takes seconds.
std::vector<Finding> check_operations(const Exec& exec, Lab::Spoil spoil = {});

}  // namespace m2::app::doctor
