#pragma once

#include <string>
#include <utility>

#include "base/json.h"

namespace m2 {

// Appends a member to an object and returns its value. Precondition: the object has none of that
// name; it is not looked for. (operator[] of the library's ordered object looks through all members
// each time: whoever copies a client's object so takes time by the square of its size.)
inline Json& append_member(Json& object, std::string name, Json value) {
  auto& members = object.get_ref<Json::object_t&>();
  return static_cast<Json::object_t::Container&>(members)
      .emplace_back(std::move(name), std::move(value))
      .second;
}

}  // namespace m2
