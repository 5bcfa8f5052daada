#include "parallel/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "base/log.h"

namespace m2::parallel {
namespace {

constexpr uint32_t kMagic = 0x326d2e72;  // "r.m2"
constexpr int64_t kMaxHello = 64 << 10;
constexpr Nanos kHelloTime =
    5 * kSecond;                 // for a whole greeting, so that a stranger holds nobody up
constexpr int kPollSlice = 100;  // ms between looks at the stop flag

// Ahead of each process's part of a call.
struct FrameHeader {
  uint32_t magic = kMagic;
  uint32_t kind = 0;
  uint64_t number = 0;
  int64_t bytes = 0;
};

Nanos now() {
  return SteadyClock().now();
}

std::string error_text() {
  return std::strerror(errno);
}

// Ready to read (or write) within the time; false if not.
bool wait_ready(int fd, short events, Nanos until) {
  while (true) {
    const Nanos left = until - now();
    if (left <= 0) return false;
    pollfd one{fd, events, 0};
    const int ready =
        ::poll(&one, 1, static_cast<int>(std::min<Nanos>(left / 1'000'000 + 1, 1000)));
    if (ready > 0) return true;
  }
}

}  // namespace

class TcpMesh::Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  ~Socket() { ::close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  int fd() const { return fd_; }

  // All bytes, or false.
  bool send(const void* data, int64_t bytes, Nanos until) {
    const auto* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::send(fd_, at, static_cast<size_t>(bytes), MSG_NOSIGNAL);
      if (n > 0)
        at += n, bytes -= n;
      else if (n < 0 && errno != EAGAIN && errno != EINTR)
        return false;
      else if (!wait_ready(fd_, POLLOUT, until))
        return false;
    }
    return true;
  }
  bool receive(void* data, int64_t bytes, Nanos until) {
    auto* at = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::recv(fd_, at, static_cast<size_t>(bytes), 0);
      if (n > 0)
        at += n, bytes -= n;
      else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        return false;
      else if (!wait_ready(fd_, POLLIN, until))
        return false;
    }
    return true;
  }

  // A JSON object, its length ahead.
  bool send_json(const Json& json, Nanos until) {
    const std::string text = to_text(json);
    const uint32_t head[2] = {kMagic, static_cast<uint32_t>(text.size())};
    return send(head, sizeof head, until) &&
           send(text.data(), static_cast<int64_t>(text.size()), until);
  }
  Result<Json> receive_json(Nanos until) {
    uint32_t head[2];
    if (!receive(head, sizeof head, until)) return fail(Code::unavailable, "no greeting came");
    if (head[0] != kMagic || head[1] > kMaxHello)
      return fail(Code::corrupt, "what came is no greeting of m2");
    std::string text(head[1], 0);
    if (!receive(text.data(), head[1], until))
      return fail(Code::unavailable, "the greeting broke off");
    M2_TRY(Json json, parse_json(text, {kMaxHello, 8, 10'000}));
    if (!json.is_object()) return fail(Code::corrupt, "the greeting is no object");
    return json;
  }

 private:
  const int fd_;
};

// ---- the wire

class TcpWire : public Wire {
 public:
  struct Peer {
    std::shared_ptr<TcpMesh::Socket> socket;  // null for this process itself
    std::string name;
  };

  explicit TcpWire(std::vector<Peer> peers)
      : peers_(std::move(peers)), outgoing_(peers_.size()), incoming_(peers_.size()) {}

  Result<void> exchange(const Call& call, std::span<const Piece> sends,
                        std::span<const Piece> receives, Nanos deadline,
                        const std::atomic<bool>& stop) override {
    start(call, sends, receives);
    Nanos until = now() + deadline;
    while (true) {
      polls_.clear();
      waits_for_.clear();
      bool moved = false;
      for (size_t p = 0; p < peers_.size(); ++p) {
        if (!peers_[p].socket) continue;
        M2_TRY(const bool sent, send_some(p, call));
        M2_TRY(const bool received, receive_some(p, call));
        moved = moved || sent || received;
        const bool to_send = outgoing_[p].left > 0, to_receive = incoming_[p].left > 0;
        if (!to_send && !to_receive) continue;
        waits_for_.push_back(p);
        polls_.push_back({peers_[p].socket->fd(),
                          static_cast<short>((to_send ? POLLOUT : 0) | (to_receive ? POLLIN : 0)),
                          0});
      }
      if (waits_for_.empty()) return {};
      if (stop.load(std::memory_order_acquire))
        return fail(Code::unavailable, "{} was given up", describe(call));
      if (moved) until = now() + deadline;
      if (deadline > 0 && now() >= until) return late(call, deadline);
      ::poll(polls_.data(), polls_.size(), kPollSlice);
    }
  }

 private:
  // What is still to travel to or from one process: a header, then pieces.
  struct Flow {
    FrameHeader header;
    std::vector<iovec> parts;
    size_t next = 0;  // first part not done
    int64_t left = 0;
    bool header_done = false;
  };

  void start(const Call& call, std::span<const Piece> sends, std::span<const Piece> receives) {
    for (auto* flows : {&outgoing_, &incoming_}) {
      const auto& pieces = flows == &outgoing_ ? sends : receives;
      for (Flow& flow : *flows) {
        flow.header = {kMagic, call.kind, call.number, 0};
        flow.parts.assign(1, {});
        flow.next = 0;
        flow.header_done = false;
        flow.left = sizeof(FrameHeader);
      }
      for (const Piece& piece : pieces) {
        Flow& flow = (*flows)[static_cast<size_t>(piece.process)];
        flow.parts.push_back({piece.data, static_cast<size_t>(piece.bytes)});
        flow.header.bytes += piece.bytes;
        flow.left += piece.bytes;
      }
      for (Flow& flow : *flows) flow.parts[0] = {&flow.header, sizeof(FrameHeader)};
    }
    expected_.clear();
    for (const Flow& flow : incoming_) expected_.push_back(flow.header.bytes);
  }

  // True if something moved.
  Result<bool> send_some(size_t p, const Call& call) {
    Flow& flow = outgoing_[p];
    if (flow.left == 0) return false;
    msghdr message{};
    message.msg_iov = flow.parts.data() + flow.next;
    message.msg_iovlen = std::min<size_t>(flow.parts.size() - flow.next, 64);
    const ssize_t n = ::sendmsg(peers_[p].socket->fd(), &message, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n < 0) return gone(p, call);
    advance(flow, n);
    return true;
  }

  Result<bool> receive_some(size_t p, const Call& call) {
    Flow& flow = incoming_[p];
    if (flow.left == 0) return false;
    // The header first and alone: what follows is taken only if it is what we wait for.
    iovec* parts = flow.parts.data() + flow.next;
    const size_t count = flow.header_done ? std::min<size_t>(flow.parts.size() - flow.next, 64) : 1;
    const ssize_t n = ::readv(peers_[p].socket->fd(), parts, static_cast<int>(count));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n <= 0) return gone(p, call);
    advance(flow, n);
    if (!flow.header_done && flow.next > 0) {
      flow.header_done = true;
      const FrameHeader& header = flow.header;
      if (header.magic != kMagic || header.kind != call.kind || header.number != call.number ||
          header.bytes != expected_[p])
        return fail(Code::corrupt, "{} is in {} with {} bytes, this process in {} and expects {}",
                    peers_[p].name, describe({header.kind, header.number}), header.bytes,
                    describe(call), expected_[p]);
    }
    return true;
  }

  static void advance(Flow& flow, ssize_t moved) {
    flow.left -= moved;
    auto bytes = static_cast<size_t>(moved);
    while (bytes > 0 || (flow.next < flow.parts.size() && flow.parts[flow.next].iov_len == 0)) {
      iovec& part = flow.parts[flow.next];
      const size_t step = std::min(bytes, part.iov_len);
      part.iov_base = static_cast<char*>(part.iov_base) + step;
      part.iov_len -= step;
      bytes -= step;
      if (part.iov_len == 0) ++flow.next;
    }
  }

  // A process that is lost takes others along, and which of them is met first is chance: all are
  // named.
  Error gone(size_t p, const Call& call) const {
    std::string others;
    for (size_t q = 0; q < peers_.size(); ++q)
      if (q != p && peers_[q].socket && has_ended(*peers_[q].socket))
        others += (others.empty() ? "; so is " : ", ") + peers_[q].name;
    return fail(Code::unavailable, "{} is gone: its connection ended during {}{}", peers_[p].name,
                describe(call), others);
  }

  static bool has_ended(const TcpMesh::Socket& socket) {
    pollfd one{socket.fd(), POLLRDHUP, 0};
    return ::poll(&one, 1, 0) > 0;
  }

  Error late(const Call& call, Nanos deadline) const {
    std::string names;
    for (const size_t p : waits_for_) names += (names.empty() ? "" : ", ") + peers_[p].name;
    return fail(Code::unavailable, "{} did not answer {} within {:g} s", names, describe(call),
                seconds(deadline));
  }

  const std::vector<Peer> peers_;
  std::vector<Flow> outgoing_, incoming_;
  std::vector<int64_t> expected_;
  std::vector<pollfd> polls_;
  std::vector<size_t> waits_for_;
};

std::unique_ptr<Wire> TcpMesh::wire(int64_t channel, std::vector<int64_t> processes) {
  std::vector<TcpWire::Peer> peers;
  for (const int64_t process : processes) {
    const auto p = static_cast<size_t>(process);
    TcpWire::Peer peer;
    peer.name = names_[p];
    if (process != placement_.process) peer.socket = sockets_[p][static_cast<size_t>(channel)];
    peers.push_back(std::move(peer));
  }
  return std::make_unique<TcpWire>(std::move(peers));
}

// ---- the bell

class TcpBell : public Bell {
 public:
  struct Peer {
    std::shared_ptr<TcpMesh::Socket> socket;
    std::string name;
    std::array<char, sizeof(uint64_t)> came{};  // of a number, so far
    size_t bytes = 0;
  };

  TcpBell(std::vector<Peer> peers, Ears ears)
      : peers_(std::move(peers)),
        ears_(std::move(ears)),
        thread_([this](std::stop_token stop) { listen(stop); }) {}
  ~TcpBell() override {
    ring(kFarewell);
    thread_.request_stop();
  }

  // Whole numbers only: a socket that took a part of one is full, and is left alone from then on.
  void ring(uint64_t number) override {
    std::lock_guard lock(mutex_);
    for (Peer& peer : peers_) {
      if (full_.contains(&peer)) continue;
      const ssize_t n = ::send(peer.socket->fd(), &number, sizeof number, MSG_NOSIGNAL);
      if (n > 0 && n < static_cast<ssize_t>(sizeof number)) full_.insert(&peer);
    }
  }

 private:
  static constexpr uint64_t kFarewell = ~uint64_t{0};

  void listen(const std::stop_token& stop) {
    std::vector<pollfd> polls;
    for (const Peer& peer : peers_) polls.push_back({peer.socket->fd(), POLLIN, 0});
    while (!stop.stop_requested()) {
      if (::poll(polls.data(), polls.size(), kPollSlice) <= 0) continue;
      for (size_t i = 0; i < polls.size(); ++i)
        if (polls[i].fd >= 0 && polls[i].revents != 0 && !read(peers_[i])) polls[i].fd = -1;
    }
  }

  // False once there is nothing more to come from this one.
  bool read(Peer& peer) {
    const ssize_t n =
        ::recv(peer.socket->fd(), peer.came.data() + peer.bytes, peer.came.size() - peer.bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) {
      ears_.gone({Code::unavailable, peer.name + " is gone: its connection ended", {}});
      return false;
    }
    peer.bytes += static_cast<size_t>(n);
    if (peer.bytes < peer.came.size()) return true;
    peer.bytes = 0;
    uint64_t number;
    std::memcpy(&number, peer.came.data(), sizeof number);
    if (number == kFarewell) return false;
    ears_.heard(number);
    return true;
  }

  std::vector<Peer> peers_;
  const Ears ears_;
  std::mutex mutex_;
  std::set<const Peer*> full_;
  std::jthread thread_;
};

std::unique_ptr<Bell> TcpMesh::bell(int64_t channel, Bell::Ears ears) {
  std::vector<TcpBell::Peer> peers;
  for (size_t p = 0; p < sockets_.size(); ++p)
    if (static_cast<int64_t>(p) != placement_.process)
      peers.push_back({sockets_[p][static_cast<size_t>(channel)], names_[p]});
  return std::make_unique<TcpBell>(std::move(peers), std::move(ears));
}

// ---- the meeting

// "rank 2", "ranks 2 to 3"
std::string describe(const Range& ranks) {
  if (ranks.count == 0) return "no ranks";
  if (ranks.count == 1) return fmt::format("rank {}", ranks.begin);
  return fmt::format("ranks {} to {}", ranks.begin, ranks.begin + ranks.count - 1);
}

// Builds one process's part of the mesh.
class MeshBuilder {
 public:
  explicit MeshBuilder(const Meeting& meeting)
      : meeting_(meeting), until_(now() + meeting.patience), mesh_(new TcpMesh) {}

  Result<std::unique_ptr<TcpMesh>> build() {
    M2_TRY_VOID(meeting_.first ? receive_everyone() : go_to_first());
    take_places();
    M2_TRY_VOID(connect_pairs());
    return std::move(mesh_);
  }

 private:
  using SocketPtr = std::shared_ptr<TcpMesh::Socket>;
  struct Address {
    std::string host;
    int port = 0;
    int64_t process = 0;  // whose it is, for messages
  };
  // A process as the table has it.
  struct Member {
    Range share;
    Address address;
    SocketPtr greeting;  // in process 0: what it came by
  };
  struct Visitor {
    SocketPtr socket;
    std::string host;
  };
  size_t count() const { return members_.size(); }
  size_t self() const { return static_cast<size_t>(mesh_->placement_.process); }

  // ---- process 0

  // Takes greetings until all ranks have come, then tells all who is where.
  Result<void> receive_everyone() {
    M2_TRY(const SocketPtr listener, listen_on(meeting_.address, meeting_.port));
    std::random_device random;
    session_ = fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
    members_.push_back({meeting_.share, {meeting_.address, meeting_.port}, nullptr});
    log_info("Waiting for {} more ranks on {}:{}", missing(), meeting_.address, meeting_.port);
    while (missing() > 0) {
      M2_TRY(const Visitor visitor, accept_one(listener));
      M2_TRY_VOID(greet(visitor));
    }
    std::ranges::sort(members_.begin() + 1, members_.end(), {},
                      [](const Member& member) { return member.share.begin; });
    Json table = Json::array();
    for (const Member& member : members_)
      table.push_back(Json{{"host", member.address.host},
                           {"port", member.address.port},
                           {"first_rank", member.share.begin},
                           {"ranks", member.share.count}});
    for (size_t p = 1; p < count(); ++p)
      if (!members_[p].greeting->send_json({{"session", session_}, {"processes", table}}, until_))
        return fail(Code::unavailable, "the process of {} left before the start",
                    describe(members_[p].share));
    listener_ = listener;  // the pairs with process 0 come to the same place
    return {};
  }

  int64_t missing() const {
    int64_t out = meeting_.ranks;
    for (const Member& member : members_) out -= member.share.count;
    return out;
  }

  // Lets a visitor in, or sends it away. Fails if it is one of ours that cannot join.
  Result<void> greet(const Visitor& visitor) {
    const auto hello = visitor.socket->receive_json(std::min(until_, now() + kHelloTime));
    if (!hello.ok()) {
      log_warning("{} came to the meeting of ranks and was sent away: {}", visitor.host,
                  hello.error().text);
      return {};
    }
    const std::optional<Range> share = share_of(*hello);
    const Json port = hello->value("port", Json());
    if (!share || !port.is_number_integer() || port < 0 || port > 65535) {
      refuse(visitor.socket, "the greeting names no ranks or no port");
      return {};
    }
    if (const std::string why = differs(hello->value("terms", Json())); !why.empty()) {
      refuse(visitor.socket, why);
      return fail(Code::invalid_argument, "the process of {} at {} cannot join: {}",
                  describe(*share), visitor.host, why);
    }
    if (const std::string why = has_no_place(*share); !why.empty()) {
      refuse(visitor.socket, why);
      return {};
    }
    members_.push_back({*share, {visitor.host, port.get<int>()}, visitor.socket});
    return {};
  }

  static std::optional<Range> share_of(const Json& json) {
    const Json first = json.value("first_rank", Json()), ranks = json.value("ranks", Json());
    if (!first.is_number_integer() || !ranks.is_number_integer()) return std::nullopt;
    return Range{first.get<int64_t>(), ranks.get<int64_t>()};
  }

  // Why these ranks cannot come; empty if they can.
  std::string has_no_place(const Range& share) const {
    if (share.begin < 0 || share.count < 1 || share.begin >= meeting_.ranks ||
        share.count > meeting_.ranks - share.begin)
      return fmt::format("{} of {} cannot be", describe(share), meeting_.ranks);
    for (const Member& member : members_)
      if (share.begin < member.share.begin + member.share.count &&
          member.share.begin < share.begin + share.count)
        return fmt::format("{} cannot come: {} came before", describe(share),
                           describe(member.share));
    return "";
  }

  static void refuse(const SocketPtr& socket, const std::string& why) {
    socket->send_json({{"refused", why}}, now() + kSecond);
  }

  // The first term that is not the same; empty if all are.
  std::string differs(const Json& terms) const {
    if (!terms.is_object()) return "the greeting has no terms";
    for (const auto& [name, value] : meeting_.terms.items()) {
      const Json theirs = terms.value(name, Json());
      if (theirs != value)
        return fmt::format("{} differs: process 0 has {}, the other {}", name, to_text(value),
                           to_text(theirs));
    }
    return terms.size() == meeting_.terms.size() ? "" : "the terms are not those of this version";
  }

  // ---- the others

  Result<void> go_to_first() {
    M2_TRY(SocketPtr first, connect_to({meeting_.address, meeting_.port}, until_));
    // Those of higher rank come to us, at the address by which we reach process 0.
    M2_TRY(listener_, listen_on(local_host(*first), 0));
    const Json hello{{"first_rank", meeting_.share.begin},
                     {"ranks", meeting_.share.count},
                     {"port", port_of(*listener_)},
                     {"terms", meeting_.terms}};
    if (!first->send_json(hello, until_))
      return fail(Code::unavailable, "process 0 at {}:{} closed the connection", meeting_.address,
                  meeting_.port);
    M2_TRY(const Json reply, first->receive_json(until_));
    if (reply.contains("refused") && reply["refused"].is_string())
      return fail(Code::invalid_argument, "process 0 refuses this one: {}",
                  printable(reply["refused"].get<std::string>(), 500));
    if (!read_table(reply))
      return fail(Code::corrupt, "process 0 answered with something else than a table");
    members_[0].address = {meeting_.address, meeting_.port};
    return {};
  }

  // False if it is none, or this process is not in it.
  bool read_table(const Json& reply) {
    const Json table = reply.value("processes", Json()), session = reply.value("session", Json());
    if (!table.is_array() || !session.is_string()) return false;
    session_ = session.get<std::string>();
    bool here = false;
    for (const Json& row : table) {
      if (!row.is_object()) return false;
      const std::optional<Range> share = share_of(row);
      const Json host = row.value("host", Json()), port = row.value("port", Json());
      if (!share || !host.is_string() || !port.is_number_integer()) return false;
      here = here || (!members_.empty() && share->begin == meeting_.share.begin);
      const auto process = static_cast<int64_t>(count());
      members_.push_back({*share, {host.get<std::string>(), port.get<int>(), process}, nullptr});
    }
    return here;
  }

  // Everyone is known: numbers and names.
  void take_places() {
    for (size_t p = 0; p < count(); ++p) {
      mesh_->placement_.ranks.push_back(members_[p].share);
      mesh_->names_.push_back(fmt::format("process {} ({})", p, members_[p].address.host));
      if (!meeting_.first && p > 0 && members_[p].share.begin == meeting_.share.begin)
        mesh_->placement_.process = static_cast<int64_t>(p);
    }
    mesh_->sockets_.resize(count());
    for (auto& channels : mesh_->sockets_) channels.resize(static_cast<size_t>(meeting_.channels));
  }

  // ---- every pair

  // Each process goes to those of lower rank, then takes those of higher rank, on every channel.
  Result<void> connect_pairs() {
    for (size_t p = 0; p < self(); ++p)
      for (int64_t channel = 0; channel < meeting_.channels; ++channel) {
        M2_TRY(SocketPtr socket, connect_to(members_[p].address, until_));
        const Json hello{{"session", session_}, {"process", self()}, {"channel", channel}};
        if (!socket->send_json(hello, until_))
          return fail(Code::unavailable, "{} left before the start", mesh_->names_[p]);
        M2_TRY([[maybe_unused]] const Json welcome, socket->receive_json(until_));
        mesh_->sockets_[p][static_cast<size_t>(channel)] = std::move(socket);
      }
    auto to_come = static_cast<int64_t>(count() - 1 - self()) * meeting_.channels;
    while (to_come > 0) {
      M2_TRY(auto visitor, accept_one(listener_));
      auto hello = visitor.socket->receive_json(std::min(until_, now() + kHelloTime));
      if (!hello.ok() || hello->value("session", Json()) != Json(session_)) continue;
      const Json process = hello->value("process", Json());
      const Json channel = hello->value("channel", Json());
      if (!process.is_number_integer() || !channel.is_number_integer()) continue;
      const auto p = process.get<int64_t>(), c = channel.get<int64_t>();
      if (p <= mesh_->placement_.process || p >= static_cast<int64_t>(count()) || c < 0 ||
          c >= meeting_.channels)
        continue;
      SocketPtr& place = mesh_->sockets_[static_cast<size_t>(p)][static_cast<size_t>(c)];
      if (place || !visitor.socket->send_json({{"welcome", true}}, until_)) continue;
      place = visitor.socket;
      --to_come;
    }
    listener_.reset();
    return {};
  }

  // ---- sockets

  Result<Visitor> accept_one(const SocketPtr& listener) {
    sockaddr_storage from{};
    while (true) {
      socklen_t size = sizeof from;
      const int fd = ::accept(listener->fd(), reinterpret_cast<sockaddr*>(&from), &size);
      if (fd >= 0) return Visitor{std::make_shared<TcpMesh::Socket>(fd), host_of(from)};
      if (!wait_ready(listener->fd(), POLLIN, until_))
        return fail(Code::unavailable, "not all {} ranks came within {:g} s", meeting_.ranks,
                    seconds(meeting_.patience));
    }
  }

  static std::string host_of(const sockaddr_storage& address) {
    char text[INET6_ADDRSTRLEN] = "";
    if (address.ss_family == AF_INET)
      inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text,
                sizeof text);
    if (address.ss_family == AF_INET6)
      inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text,
                sizeof text);
    return text;
  }

  static sockaddr_storage local_address(const TcpMesh::Socket& socket) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size);
    return address;
  }
  static std::string local_host(const TcpMesh::Socket& socket) {
    return host_of(local_address(socket));
  }
  static int port_of(const TcpMesh::Socket& socket) {
    const sockaddr_storage address = local_address(socket);
    return ntohs(address.ss_family == AF_INET6
                     ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                     : reinterpret_cast<const sockaddr_in&>(address).sin_port);
  }

  struct Resolved {
    sockaddr_storage address{};
    socklen_t size = 0;
  };
  static Result<Resolved> resolve(const Address& where) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error =
        ::getaddrinfo(where.host.c_str(), std::to_string(where.port).c_str(), &hints, &found);
    if (error != 0 || !found)
      return fail(Code::invalid_argument, "{}{}: {}",
                  where.process == 0 ? "--master-addr " : "the host of a process, ", where.host,
                  gai_strerror(error));
    Resolved out;
    std::memcpy(&out.address, found->ai_addr, found->ai_addrlen);
    out.size = found->ai_addrlen;
    ::freeaddrinfo(found);
    return out;
  }

  static Result<SocketPtr> listen_on(const std::string& host, int port) {
    M2_TRY(const Resolved where, resolve({host, port}));
    const int fd = ::socket(where.address.ss_family, SOCK_STREAM, 0);
    if (fd < 0) return fail(Code::unavailable, "no socket: {}", error_text());
    auto socket = std::make_shared<TcpMesh::Socket>(fd);
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&where.address), where.size) != 0 ||
        ::listen(fd, 64) != 0)
      return fail(Code::unavailable, "cannot listen for ranks on {}:{}: {}", host, port,
                  error_text());
    return socket;
  }

  // Tries until it succeeds or `until` has come: the other may not listen yet.
  static Result<SocketPtr> connect_to(const Address& where, Nanos until) {
    M2_TRY(const Resolved to, resolve(where));
    int why = ETIMEDOUT;
    while (true) {
      const int fd = ::socket(to.address.ss_family, SOCK_STREAM, 0);
      if (fd < 0) return fail(Code::unavailable, "no socket: {}", error_text());
      auto socket = std::make_shared<TcpMesh::Socket>(fd);
      int error = 0;
      if (::connect(fd, reinterpret_cast<const sockaddr*>(&to.address), to.size) != 0)
        error = errno;
      if (error == EINPROGRESS && wait_ready(fd, POLLOUT, std::min(until, now() + kHelloTime))) {
        socklen_t size = sizeof error;
        ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
      }
      if (error == 0) return socket;
      if (error != EINPROGRESS) why = error;  // else the time ran out before there was an answer
      if (now() >= until)
        return fail(Code::unavailable, "cannot reach process {} at {}:{}: {}", where.process,
                    where.host, where.port, std::strerror(why));
      ::usleep(100'000);
    }
  }

  const Meeting& meeting_;
  const Nanos until_;
  std::unique_ptr<TcpMesh> mesh_;
  std::vector<Member> members_;  // in process 0 those who have come so far
  std::string session_;
  SocketPtr listener_;
};

Result<std::unique_ptr<TcpMesh>> TcpMesh::connect(const Meeting& meeting) {
  return MeshBuilder(meeting).build();
}

}  // namespace m2::parallel
