#pragma once

#include <sys/types.h>

#include <functional>

#include "base/json.h"
#include "base/result.h"

namespace m2::app::bench {

// Work done in a process of its own: with descriptors, memory and CPU time of its own.
class Child {
 public:
  // Forks at once, so call it before there are threads; `work` runs there when run() says so, and
  // should not use what this process has begun since.
  static Result<Child> start(std::function<Json(int number)> work);
  ~Child();
  Child(Child&& from) noexcept;
  Child& operator=(Child&&) = delete;

  // Has the work done with `number`, and returns what it returned. Once. Fails if the process ends
  // without an answer.
  Result<Json> run(int number);

 private:
  Child(pid_t process, int socket) : process_(process), socket_(socket) {}
  void end();

  pid_t process_;
  int socket_;  // -1: ended
};

}  // namespace m2::app::bench
