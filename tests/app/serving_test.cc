#include "app/serving.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "app/http_client.h"
#include "app/own_server.h"

namespace m2::app {
namespace {

// Probes ask the server how its engine is until it answers no more: the engine must be there.
TEST(Serving, IsThereUntilItsServerAnswersNoMore) {
  const std::vector<std::string> words = with_private_server({"--max-num-seqs", "2"});
  const Result<Values> values = parse_command_line(
      serve_command(), words, [](const char*) -> const char* { return nullptr; });
  ASSERT_TRUE(values.ok()) << values.error().text;
  for (int round = 0; round < 5; ++round) {
    auto serving = Serving::start(M2_SOURCE_DIR "/models/m2-micro", *values, SignalsEnd::process);
    ASSERT_TRUE(serving.ok()) << serving.error().text;
    const HttpClient client(fmt::format("http://127.0.0.1:{}", (*serving)->port()), "");
    std::atomic<bool> over{false};
    std::atomic<int> answers{0};
    std::vector<std::jthread> probes;
    for (int i = 0; i < 4; ++i)
      probes.emplace_back([&] {
        while (!over) answers += client.get_text("/health").ok();
      });
    while (answers < 20) std::this_thread::yield();
    serving->reset();
    over = true;
  }
}

}  // namespace
}  // namespace m2::app
