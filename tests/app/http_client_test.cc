#include "app/http_client.h"

#include <gtest/gtest.h>

namespace m2::app {
namespace {

// The data of every event of a stream cut into pieces of `step` bytes.
std::vector<std::string> events_of(std::string_view stream, size_t step) {
  std::vector<std::string> out;
  SseReader reader;
  for (size_t i = 0; i < stream.size(); i += step) {
    reader.feed(stream.substr(i, step), [&](std::string_view data) {
      out.emplace_back(data);
      return true;
    });
  }
  return out;
}

TEST(SseReader, ReadsEventsHoweverTheyAreCut) {
  constexpr std::string_view kStream =
      ": ping\n\ndata: {\"a\":1}\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:[DONE]\n\n"
      "data: unfinished";
  const std::vector<std::string> expected{"{\"a\":1}", "one\ntwo", "[DONE]"};
  for (size_t step = 1; step <= kStream.size(); ++step)
    EXPECT_EQ(events_of(kStream, step), expected);
}

TEST(SseReader, StopsWhenAsked) {
  SseReader reader;
  int seen = 0;
  EXPECT_FALSE(reader.feed("data: 1\n\ndata: 2\n\n", [&](std::string_view) { return ++seen < 1; }));
  EXPECT_EQ(seen, 1);
}

TEST(HttpClient, AnAbsentServerIsAnErrorThatNamesIt) {
  const HttpClient client("http://127.0.0.1:1/v1/", "");
  const Result<Json> reply = client.get("/v1/models");
  ASSERT_FALSE(reply.ok());
  EXPECT_NE(reply.error().text.find("http://127.0.0.1:1/v1/models"), std::string::npos);
}

}  // namespace
}  // namespace m2::app
