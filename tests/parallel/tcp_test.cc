#include "parallel/tcp.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "parallel/shared_comm.h"
#include "tests/parallel/comm_contract.h"
#include "tests/parallel/free_port.h"

namespace m2::parallel {
namespace {

using Meshes = std::vector<Result<std::unique_ptr<TcpMesh>>>;

// "Processes" are threads here: what they share is the loopback only.
Meshes meet(int64_t processes, int64_t channels, const std::function<void(Meeting&)>& change = {}) {
  Meshes out;
  for (int64_t p = 0; p < processes; ++p) out.emplace_back(Error{Code::internal, "not run", {}});
  const int port = free_port();
  std::vector<std::thread> threads;
  for (int64_t p = 0; p < processes; ++p)
    threads.emplace_back([&, p] {
      Meeting meeting;
      meeting.first = p == 0;
      meeting.share = {p, 1};
      meeting.ranks = processes;
      meeting.port = port;
      meeting.channels = channels;
      meeting.terms = {{"version", "1"}, {"world", processes}};
      meeting.patience = 20 * kSecond;
      if (change) change(meeting);
      out[static_cast<size_t>(p)] = TcpMesh::connect(meeting);
    });
  for (std::thread& thread : threads) thread.join();
  return out;
}

sockaddr_in loopback(int port) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  out.sin_port = htons(static_cast<uint16_t>(port));
  return out;
}

struct Ranks {
  Meshes meshes;
  std::vector<LocalRank> ranks;
};

// tensor_size ranks of one engine over so many processes.
Ranks ranks_of(int64_t tensor_size, int64_t processes) {
  Topology shape;
  shape.tensor_size = tensor_size;
  Ranks out{meet(processes, channels_of(shape)), {}};
  for (int64_t p = 0; p < processes; ++p) {
    auto& mesh = out.meshes[static_cast<size_t>(p)];
    M2_CHECK(mesh.ok(), "{}", mesh.error().text);
    for (LocalRank& rank :
         make_local_ranks(shape, place_evenly(tensor_size, processes, p), mesh->get()))
      out.ranks.push_back(std::move(rank));
  }
  return out;
}

Comms tensor_comms(const Ranks& ranks) {
  Comms out;
  for (const LocalRank& rank : ranks.ranks) out.push_back(rank.tensor.get());
  return out;
}

TEST(TcpComm, KeepsTheContractWithOneRankPerProcess) {
  check_contract(tensor_comms(ranks_of(3, 3)));
}

TEST(TcpComm, KeepsTheContractWithSeveralRanksPerProcess) {
  check_contract(tensor_comms(ranks_of(6, 2)));
}

// Two engines of three ranks over two and three processes: groups within and across them.
TEST(TcpComm, GroupsWithinAndAcrossProcesses) {
  Topology shape;
  shape.tensor_size = 3;
  shape.data_size = 2;
  for (const int64_t processes : {2, 3}) {
    const Meshes meshes = meet(processes, channels_of(shape));
    std::vector<LocalRank> ranks;
    for (int64_t p = 0; p < processes; ++p)
      for (LocalRank& rank : make_local_ranks(shape, place_evenly(6, processes, p),
                                              meshes[static_cast<size_t>(p)]->get()))
        ranks.push_back(std::move(rank));
    Comms all, first, second;
    for (size_t r = 0; r < ranks.size(); ++r) {
      all.push_back(ranks[r].engines.get());
      (r < 3 ? first : second).push_back(ranks[r].tensor.get());
    }
    check_contract(all);
    check_contract(first);
    check_contract(second);
  }
}

// The same bytes as within one process: sums do not depend on where ranks live.
TEST(TcpComm, SumsAreThoseOfThreads) {
  const auto run = [](const Comms& comms) {
    std::vector<std::vector<float>> out(comms.size());
    on_every_rank(comms, [&](Comm& comm) {
      auto& x = out[static_cast<size_t>(comm.rank())];
      x = numbers<float>(comm.rank(), 5000, 3);
      comm.all_reduce(host(), view(x, 1, 5000));
    });
    return out;
  };
  const auto threads = make_thread_comms(4);
  Comms thread_comms;
  for (const auto& comm : threads) thread_comms.push_back(comm.get());
  EXPECT_EQ(run(tensor_comms(ranks_of(4, 2))), run(thread_comms));
}

TEST(TcpComm, SaysWhoIsGone) {
  Ranks ranks = ranks_of(2, 2);
  ranks.meshes[1] = Error{Code::internal, "closed", {}};
  const std::unique_ptr<Comm> left = std::move(ranks.ranks[0].tensor);
  ranks.ranks.clear();
  left->set_deadline(10 * kSecond);
  std::vector<float> x(10, 1);
  left->all_reduce(host(), view(x, 1, 10));
  EXPECT_EQ(left->status().error().text,
            "process 1 (127.0.0.1) is gone: its connection ended during all_reduce 1");
}

TEST(TcpComm, SaysWhoElseIsGone) {
  Ranks ranks = ranks_of(4, 4);
  for (const size_t lost : {1, 3}) {
    ranks.meshes[lost] = Error{Code::internal, "closed", {}};
    ranks.ranks[lost].tensor.reset();
  }
  Comm& left = *ranks.ranks[0].tensor;
  left.set_deadline(10 * kSecond);
  left.barrier(host());
  EXPECT_EQ(left.status().error().text,
            "process 1 (127.0.0.1) is gone: its connection ended during barrier 1; so is process 3 "
            "(127.0.0.1)");
}

TEST(TcpComm, SaysWhoDoesNotAnswerAndInWhat) {
  Ranks ranks = ranks_of(2, 2);
  Comm& comm = *ranks.ranks[0].tensor;
  comm.set_deadline(kSecond / 5);
  std::vector<float> x(10, 1);
  comm.barrier(host());
  comm.all_reduce(host(), view(x, 1, 10));
  EXPECT_EQ(comm.status().error().text,
            "process 1 (127.0.0.1) did not answer barrier 1 within 0.2 s");
}

TEST(TcpComm, SaysWhoIsElsewhere) {
  Ranks ranks = ranks_of(2, 2);
  on_every_rank(tensor_comms(ranks), [](Comm& comm) {
    std::vector<float> x(10, 1);
    if (comm.rank() == 0) {
      comm.broadcast(host(), view(x, 1, 10), 0);
    } else {
      comm.all_reduce(host(), view(x, 1, 10));
    }
    EXPECT_NE(comm.status().error().text.find("is in "), std::string::npos)
        << comm.status().error().text;
  });
}

TEST(TcpComm, AbortEndsAWait) {
  Ranks ranks = ranks_of(2, 2);
  Comm& comm = *ranks.ranks[0].tensor;
  std::thread aborts([&] {
    ::usleep(50'000);
    comm.abort({Code::unavailable, "enough", {}});
  });
  comm.barrier(host());
  aborts.join();
  EXPECT_EQ(comm.status().error().text, "enough");
}

// Everyone hears what another rings, and who leaves without a word.
TEST(TcpBell, IsHeardAndSaysWhoIsGone) {
  Meshes meshes = meet(3, 2);
  struct Ears {
    std::atomic<uint64_t> heard{0};
    std::atomic<int> gone{0};
    std::string who;
  };
  std::array<Ears, 3> ears;
  const auto soon = [](const std::function<bool()>& done) {
    for (int i = 0; i < 500 && !done(); ++i) ::usleep(10'000);
    return done();
  };
  std::vector<std::unique_ptr<Bell>> bells;
  for (size_t p = 0; p < 3; ++p)
    bells.push_back((*meshes[p])
                        ->bell(1, {[&ears, p](uint64_t n) { ears[p].heard += n; },
                                   [&ears, p](const Error& who) {
                                     ears[p].who = who.text;
                                     ++ears[p].gone;
                                   }}));
  for (uint64_t n = 1; n <= 100; ++n) bells[1]->ring(n);
  EXPECT_TRUE(soon([&] { return ears[0].heard == 5050 && ears[2].heard == 5050; }));
  EXPECT_EQ(ears[1].heard, 0u);
  bells[2].reset();  // says that it leaves
  meshes[2] = Error{Code::internal, "closed", {}};
  bells[1]->ring(1);
  EXPECT_TRUE(soon([&] { return ears[0].heard == 5051; }));
  ::usleep(200'000);
  EXPECT_EQ(ears[0].gone + ears[1].gone, 0);

  Meshes two = meet(2, 2);
  const auto bell = (*two[0])->bell(1, {[](uint64_t) {},
                                        [&](const Error& who) {
                                          ears[2].who = who.text;
                                          ++ears[2].gone;
                                        }});
  two[1] = Error{Code::internal, "closed", {}};
  EXPECT_TRUE(soon([&] { return ears[2].gone == 1; }));
  EXPECT_EQ(ears[2].who, "process 1 (127.0.0.1) is gone: its connection ended");
}

TEST(TcpMesh, RefusesOtherTermsInWordsOnBothSides) {
  const Meshes meshes = meet(2, 1, [](Meeting& meeting) {
    if (!meeting.first) meeting.terms["version"] = "2";
  });
  EXPECT_EQ(meshes[0].error().text,
            "the process of rank 1 at 127.0.0.1 cannot join: version differs: process 0 has \"1\", "
            "the other \"2\"");
  EXPECT_EQ(meshes[1].error().text,
            "process 0 refuses this one: version differs: process 0 has \"1\", the other \"2\"");
}

// Shares of any sizes, from whoever comes first; the first process may have none.
TEST(TcpMesh, RanksMeetInUnevenShares) {
  Topology shape;
  shape.data_size = 6;
  const std::vector<Range> shares{{0, 0}, {3, 3}, {0, 1}, {1, 2}};
  const Meshes meshes = meet(4, channels_of(shape), [&](Meeting& meeting) {
    meeting.share = shares[static_cast<size_t>(meeting.share.begin)];
    meeting.ranks = 6;
  });
  std::vector<LocalRank> ranks;
  std::vector<int64_t> begins;
  for (const size_t p : {0, 2, 3, 1}) {  // in the order of their ranks
    ASSERT_TRUE(meshes[p].ok()) << meshes[p].error().text;
    const Placement& where = (*meshes[p])->placement();
    EXPECT_EQ(where.process, static_cast<int64_t>(begins.size()));
    begins.push_back(where.local().begin);
    for (LocalRank& rank : make_local_ranks(shape, where, meshes[p]->get()))
      ranks.push_back(std::move(rank));
  }
  EXPECT_EQ(begins, (std::vector<int64_t>{0, 0, 1, 3}));
  Comms all;
  for (const LocalRank& rank : ranks) all.push_back(rank.engines.get());
  ASSERT_EQ(all.size(), 6u);
  check_contract(all);
}

// Of two processes with the same rank the second is sent away, and the meeting goes on.
TEST(TcpMesh, RanksComeOnce) {
  const int port = free_port();
  const Meshes meshes = meet(4, 1, [&](Meeting& meeting) {
    const int64_t number = meeting.share.begin;
    meeting.port = port;
    meeting.ranks = 3;
    if (number == 2) meeting.share.begin = 1;  // late, with the rank of another
    if (number == 3) meeting.share.begin = 2;  // last
    if (number > 0) ::usleep(static_cast<useconds_t>(200'000 * number));
  });
  EXPECT_EQ(meshes[2].error().text,
            "process 0 refuses this one: rank 1 cannot come: rank 1 came before");
  for (const size_t p : {0, 1, 3}) EXPECT_TRUE(meshes[p].ok()) << meshes[p].error().text;
}

TEST(TcpMesh, GivesUpOnThoseWhoDoNotCome) {
  Meeting meeting;
  meeting.ranks = 2;
  meeting.port = free_port();
  meeting.patience = kSecond / 5;
  EXPECT_EQ(TcpMesh::connect(meeting).error().text, "not all 2 ranks came within 0.2 s");
  meeting.first = false;
  EXPECT_NE(TcpMesh::connect(meeting).error().text.find("cannot reach process 0 at 127.0.0.1"),
            std::string::npos);
}

// Whom a process cannot reach is named by its own place, not by that of process 0.
TEST(TcpMesh, SaysWhomItCannotReach) {
  const int port = free_port(), closed = free_port();
  std::jthread first([&] {
    const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = loopback(port);
    ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener, 4), 0);
    const Json row{{"host", "127.0.0.1"}, {"ranks", 1}};
    Json table = Json::array({row, row, row});
    for (int64_t p = 0; p < 3; ++p) table[static_cast<size_t>(p)]["first_rank"] = p;
    table[0]["port"] = port;
    table[1]["port"] = closed;
    table[2]["port"] = 1;
    const Json replies[] = {Json{{"session", "s"}, {"processes", table}}, Json{{"welcome", true}}};
    std::vector<int> visitors;
    for (const Json& reply : replies) {  // the greeting, then the pair
      visitors.push_back(::accept(listener, nullptr, nullptr));
      const std::string text = to_text(reply);
      const uint32_t head[2] = {0x326d2e72, static_cast<uint32_t>(text.size())};
      ::send(visitors.back(), head, sizeof head, MSG_NOSIGNAL);
      ::send(visitors.back(), text.data(), text.size(), MSG_NOSIGNAL);
    }
    char last;
    while (::recv(visitors.back(), &last, 1, 0) > 0) {
    }
    for (const int fd : visitors) ::close(fd);
    ::close(listener);
  });
  Meeting meeting;
  meeting.first = false;
  meeting.share = {2, 1};
  meeting.ranks = 3;
  meeting.port = port;
  meeting.channels = 1;
  meeting.patience = kSecond;
  const std::string error = TcpMesh::connect(meeting).error().text;
  EXPECT_EQ(error.find(fmt::format("cannot reach process 1 at 127.0.0.1:{}: ", closed)), 0u)
      << error;
}

// Whatever a stranger sends to the meeting, the ranks still meet.
TEST(TcpMesh, StrangersAreSentAway) {
  const int port = free_port();
  std::atomic<bool> over{false};
  std::thread stranger([&] {
    for (int round = 0; !over; ++round) {
      const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
      const sockaddr_in address = loopback(port);
      if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
        std::string bytes = numbers<float>(round, 50, 0).size() > 0 ? "GET / HTTP/1.1\r\n\r\n" : "";
        if (round % 2 == 1) bytes = std::string("r.m2\xff\xff\xff\x7f", 8);
        if (round % 3 == 2) bytes = std::string("r.m2\x02\x00\x00\x00{}", 10);
        [[maybe_unused]] const auto sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      }
      ::close(fd);
      ::usleep(5000);
    }
  });
  ::usleep(20'000);
  const Meshes meshes = meet(3, 2, [&](Meeting& meeting) {
    meeting.port = port;
    if (!meeting.first) ::usleep(100'000);
  });
  over = true;
  stranger.join();
  for (const auto& mesh : meshes) EXPECT_TRUE(mesh.ok()) << mesh.error().text;
}

}  // namespace
}  // namespace m2::parallel
