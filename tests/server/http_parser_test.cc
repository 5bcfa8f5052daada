#include "server/http_parser.h"

#include <gtest/gtest.h>

namespace m2::server {
namespace {

struct Outcome {
  HttpParser::State state;
  int status = 0;
  std::string method, path, query, body;
  bool operator==(const Outcome&) const = default;
};

// Feeds `bytes` in two pieces cut at `cut`.
Outcome parse(const std::string& bytes, size_t cut) {
  static const Limits limits;
  HttpParser parser(limits);
  std::string input = bytes.substr(0, cut);
  parser.feed(input);
  input += bytes.substr(cut);
  const auto state = parser.feed(input);
  HttpRequest& request = parser.request();
  Outcome out{state, 0, request.method, request.path, request.query, request.body};
  if (state == HttpParser::State::refused) out = {state, parser.refusal().status, {}, {}, {}, {}};
  return out;
}

TEST(HttpParser, ResultDoesNotDependOnTheCut) {
  const std::string head = "POST /a?b=c HTTP/1.1\r\nHost: x\r\n";
  for (const std::string& rest :
       {std::string("Content-Length: 5\r\n\r\nhello"), std::string("\r\n"),
        std::string("Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
        std::string("Transfer-Encoding: chunked\r\n\r\n-2\r\nhello\r\n0\r\n\r\n"),
        std::string("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        std::string("X: folded\r\n line\r\n\r\n"), std::string("X: folded\r\n\tline\r\n\r\n"),
        std::string("Bad Header: 5\r\n\r\n")}) {
    for (const char* blank : {"", "\r\n"}) {
      const std::string bytes = blank + head + rest;
      const Outcome whole = parse(bytes, bytes.size());
      EXPECT_NE(whole.state, HttpParser::State::header) << rest;
      for (size_t cut = 0; cut < bytes.size(); ++cut)
        ASSERT_EQ(parse(bytes, cut), whole) << rest << " cut at " << cut;
    }
  }
}

TEST(HttpParser, FoldedLinesAreRefusedAndBodiesAreNotLookedAt) {
  const std::string head = "POST /a HTTP/1.1\r\nHost: x\r\n";
  const std::string folded = head + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n";
  EXPECT_EQ(parse(folded, 0).status, 400);
  const std::string body = head + "Content-Length: 6\r\n\r\na\r\n b\n";
  EXPECT_EQ(parse(body, 0).body, "a\r\n b\n");
  EXPECT_EQ(parse("\r\n\r\n" + head + "\r\n", 0).status, 400);
}

TEST(HttpParser, ReadsRequestsOneAfterTheOther) {
  const Limits limits;
  HttpParser parser(limits);
  std::string input =
      "POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
      "GET http://x/second?q HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_EQ(parser.feed(input), HttpParser::State::complete);
  EXPECT_EQ(parser.request().body, "hi");
  parser.next();
  ASSERT_EQ(parser.feed(input), HttpParser::State::complete);
  EXPECT_EQ(parser.request().path, "/second");
  EXPECT_EQ(parser.request().query, "q");
  EXPECT_TRUE(input.empty());
}

}  // namespace
}  // namespace m2::server
