#include "app/bench/child.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace m2::app::bench {
namespace {

bool write_all(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

// Reads to the end of what the other side writes.
std::string read_all(int socket) {
  std::string out;
  for (char buffer[4096];;) {
    const ssize_t count = ::read(socket, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return out;
    out.append(buffer, static_cast<size_t>(count));
  }
}

// The child's whole life. It leaves without destructors: what it has of the parent is the parent's.
[[noreturn]] void serve(int socket, const std::function<Json(int)>& work) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int number = 0;
  if (::recv(socket, &number, sizeof number, MSG_WAITALL) != sizeof number) _exit(0);
  const bool sent = write_all(socket, to_text(work(number)));
  std::fflush(nullptr);
  _exit(sent ? 0 : 1);
}

}  // namespace

Result<Child> Child::start(std::function<Json(int number)> work) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return fail(Code::unavailable, "cannot make a socket pair: {}", strerror(errno));
  std::fflush(nullptr);
  const pid_t process = fork();
  if (process == 0) {
    ::close(ends[0]);
    serve(ends[1], work);
  }
  ::close(ends[1]);
  if (process > 0) return Child(process, ends[0]);
  ::close(ends[0]);
  return fail(Code::unavailable, "cannot fork: {}", strerror(errno));
}

Child::Child(Child&& from) noexcept
    : process_(from.process_), socket_(std::exchange(from.socket_, -1)) {}

Child::~Child() {
  end();
}

// A child that has not been told to work ends too.
void Child::end() {
  if (socket_ < 0) return;
  ::close(std::exchange(socket_, -1));
  while (waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Result<Json> Child::run(int number) {
  const bool told = write_all(socket_, {reinterpret_cast<const char*>(&number), sizeof number});
  const std::string answer = told ? read_all(socket_) : std::string();
  end();
  if (answer.empty())
    return fail(Code::unavailable, "the process of the clients ended without an answer");
  return parse_json(answer);
}

}  // namespace m2::app::bench
