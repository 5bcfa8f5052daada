#include "app/bench/send_floor.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "app/bench/sim_model.h"
#include "app/bench/statistics.h"
#include "base/clock.h"

namespace m2::app::bench {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& from) noexcept : number_(std::exchange(from.number_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const { return number_; }
  bool ok() const { return number_ >= 0; }

 private:
  int number_;
};

auto no_socket(const char* call) {
  return fail(Code::resource_exhausted, "{}: {}", call, ::strerror(errno));
}

// Connections over the loopback.
struct Pairs {
  std::vector<Descriptor> senders, receivers;
};

Result<Pairs> connect_pairs(int64_t count) {
  Pairs out;
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  if (!listener.ok() || ::bind(listener.get(), generic, size) != 0 ||
      ::listen(listener.get(), 16) != 0 || ::getsockname(listener.get(), generic, &size) != 0)
    return no_socket("socket");
  for (int64_t i = 0; i < count; ++i) {
    Descriptor receiver(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!receiver.ok() || ::connect(receiver.get(), generic, size) != 0)
      return no_socket("connect");
    Descriptor sender(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!sender.ok()) return no_socket("accept");
    const int on = 1;
    ::setsockopt(sender.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    out.senders.push_back(std::move(sender));
    out.receivers.push_back(std::move(receiver));
  }
  return out;
}

// What one thread saw.
struct Share {
  Nanos cpu = 0;
  std::vector<double> micros;
};

// One chunk to each of every `stride`-th connection.
void send_round(const Pairs& pairs, size_t first, size_t stride, const std::string& chunk,
                Share& out) {
  const SteadyClock clock;
  const Nanos cpu = thread_cpu_time(), began = clock.now();
  for (size_t i = first; i < pairs.senders.size(); i += stride) {
    if (::send(pairs.senders[i].get(), chunk.data(), chunk.size(), MSG_NOSIGNAL) <= 0) continue;
    out.micros.push_back(static_cast<double>(clock.now() - began) * 1e-3);
  }
  out.cpu += thread_cpu_time() - cpu;
}

// Reads everything: the next chunk finds it as the first did.
void drain(const Pairs& pairs) {
  char buffer[16 << 10];
  for (const Descriptor& receiver : pairs.receivers) {
    while (::recv(receiver.get(), buffer, sizeof buffer, MSG_DONTWAIT) > 0) {
    }
  }
}

}  // namespace

Result<SendFloor> measure_send_floor(int64_t streams, int threads, size_t bytes, int rounds) {
  M2_TRY(const Pairs pairs, connect_pairs(streams));
  const std::string chunk(bytes, 'x');
  std::vector<Share> shares(static_cast<size_t>(threads));
  std::barrier round_begins(threads);
  std::barrier round_ends(threads, [&]() noexcept { drain(pairs); });
  {
    std::vector<std::jthread> senders;
    for (size_t i = 0; i < shares.size(); ++i) {
      senders.emplace_back([&, i] {
        for (int round = 0; round < rounds; ++round) {
          round_begins.arrive_and_wait();
          send_round(pairs, i, shares.size(), chunk, shares[i]);
          round_ends.arrive_and_wait();
        }
      });
    }
  }
  Nanos cpu = 0;
  std::vector<double> micros;
  for (const Share& share : shares) {
    cpu += share.cpu;
    micros.insert(micros.end(), share.micros.begin(), share.micros.end());
  }
  if (micros.empty()) return fail(Code::unavailable, "nothing could be sent over the loopback");
  std::ranges::sort(micros);
  return SendFloor{static_cast<double>(cpu) * 1e-3 / static_cast<double>(micros.size()),
                   percentile(micros, 50) * 1e-3, percentile(micros, 99) * 1e-3};
}

}  // namespace m2::app::bench
