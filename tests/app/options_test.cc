#include "app/options.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <optional>

#include "app/serve_options.h"

namespace m2::app {
namespace {

const char* no_environment(const char*) {
  return nullptr;
}

Result<Values> parse(std::vector<std::string> words,
                     const char* (*environment)(const char*) = no_environment) {
  static const Command command{"serve", "MODEL", "", "", serve_options()};
  // Values keep a view of the words only while parsing.
  return parse_command_line(command, words, environment);
}

std::string error_of(std::vector<std::string> words) {
  const Result<Values> values = parse(std::move(words));
  return values.ok() ? "" : values.error().text;
}

TEST(Options, TheGuidesLaunchesAreRead) {
  const Result<Values> values = parse(
      {"MiniMaxAI/MiniMax-M2.5", "--tensor-parallel-size", "4", "--tool-call-parser", "minimax_m2",
       "--reasoning-parser", "minimax_m2_append_think", "--enable-auto-tool-choice",
       "--trust-remote-code", "--compilation-config", R"({"cudagraph_mode": "PIECEWISE"})"});
  ASSERT_TRUE(values.ok()) << values.error().text;
  EXPECT_EQ(values->positionals(), std::vector<std::string>{"MiniMaxAI/MiniMax-M2.5"});
  EXPECT_EQ(values->integer("tensor-parallel-size"), 4);
  EXPECT_EQ(values->text("reasoning-parser"), "minimax_m2_append_think");
  EXPECT_TRUE(values->flag("enable-auto-tool-choice"));
  EXPECT_EQ(values->json("compilation-config")["cudagraph_mode"], "PIECEWISE");
}

TEST(Options, NamesTakeUnderscoresPrefixesAndShortForms) {
  const Result<Values> values =
      parse({"--max_num_seqs", "8", "--max-num-batched=1k", "-tp", "2", "--max-model", "4K"});
  ASSERT_TRUE(values.ok()) << values.error().text;
  EXPECT_EQ(values->integer("max-num-seqs"), 8);
  EXPECT_EQ(values->integer("max-num-batched-tokens"), 1000);
  EXPECT_EQ(values->integer("tensor-parallel-size"), 2);
  EXPECT_EQ(values->integer("max-model-len"), 4096);
}

TEST(Options, AmbiguousAndUnknownNamesAreRefusedByName) {
  EXPECT_NE(error_of({"--max-n", "1"}).find("--max-num-seqs, --max-num-batched-tokens"),
            std::string::npos);
  EXPECT_NE(error_of({"--frobnicate"}).find("unknown option --frobnicate"), std::string::npos);
  EXPECT_NE(error_of({"-zz"}).find("unknown option -zz"), std::string::npos);
}

TEST(Options, AnUnknownNameBringsTheOneItIsLike) {
  EXPECT_EQ(error_of({"--tensor-paralel-sise", "4"}),
            "unknown option --tensor-paralel-sise, did you mean --tensor-parallel-size? (see m2 "
            "serve --help)");
  EXPECT_EQ(error_of({"--no-enable-prefix-cacheing"}),
            "unknown option --no-enable-prefix-cacheing, did you mean --no-enable-prefix-caching? "
            "(see m2 serve --help)");
  EXPECT_EQ(error_of({"--prot=1"}),
            "unknown option --prot, did you mean --port? (see m2 serve --help)");
  EXPECT_EQ(error_of({"--frobnicate"}), "unknown option --frobnicate (see m2 serve --help)");
}

// `m2 serve "$MODEL"` with an unset variable must not serve another model.
TEST(Options, AnEmptyArgumentIsRefused) {
  EXPECT_EQ(error_of({""}), "an argument is empty, as that of a shell variable without a value is");
}

TEST(Options, SwitchesTurnOnAndOff) {
  EXPECT_FALSE(parse({"--no-enable-prefix-caching"})->flag("enable-prefix-caching"));
  EXPECT_TRUE(parse({"--enable-prefix-caching"})->flag("enable-prefix-caching"));
  EXPECT_FALSE(parse({"--enable-prefix-caching=false"})->flag("enable-prefix-caching"));
  EXPECT_TRUE(parse({})->flag("enable-prefix-caching"));
  EXPECT_FALSE(parse({"--no-enable-prefix", "MODEL"})->flag("enable-prefix-caching"));
}

TEST(Options, JsonTakesDottedKeys) {
  const Result<Values> values = parse({"-cc.cudagraph_mode=PIECEWISE",
                                       "--compilation-config.pass_config.fuse_minimax_qk_norm",
                                       "true", "--compilation_config.level", "3"});
  ASSERT_TRUE(values.ok()) << values.error().text;
  EXPECT_EQ(
      values->json("compilation-config").dump(),
      R"({"cudagraph_mode":"PIECEWISE","pass_config":{"fuse_minimax_qk_norm":true},"level":3})");
  EXPECT_NE(error_of({"--port.x", "1"}).find("not a JSON option"), std::string::npos);
  EXPECT_NE(error_of({"--hf-overrides", "{"}).find("needs a JSON object"), std::string::npos);
}

// Bytes of a command line may be anything.
TEST(Options, DottedValuesNeedNotBeUtf8) {
  const Result<Values> values = parse({"--compilation-config.level", "\xff"});
  ASSERT_TRUE(values.ok()) << values.error().text;
  EXPECT_EQ(values->json("compilation-config")["level"], "\ufffd");
}

TEST(Options, ListsGoOnToTheNextOption) {
  const Result<Values> values =
      parse({"--served-model-name", "a", "b", "--port", "1", "--api-key", "k1", "--api-key", "k2"});
  ASSERT_TRUE(values.ok());
  EXPECT_EQ(values->list("served-model-name"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(values->list("api-key"), (std::vector<std::string>{"k1", "k2"}));
}

TEST(Options, HumanIntegers) {
  EXPECT_EQ(parse_human_integer("1k"), 1000);
  EXPECT_EQ(parse_human_integer("1K"), 1024);
  EXPECT_EQ(parse_human_integer("25.6k"), 25600);
  EXPECT_EQ(parse_human_integer("2G"), int64_t{2} << 30);
  EXPECT_EQ(parse_human_integer("-1"), -1);
  for (const char* bad :
       {"", "k", "1x", "1e400k", "9999999999999999999", "0x10", "1 ", "99999999T"})
    EXPECT_FALSE(parse_human_integer(bad)) << bad;
}

TEST(Options, ValuesAreCheckedAgainstTheirKind) {
  EXPECT_NE(error_of({"--port", "http"}).find("--port needs an integer"), std::string::npos);
  EXPECT_NE(error_of({"--port"}).find("--port needs"), std::string::npos);
  EXPECT_NE(error_of({"--gpu-memory-utilization", "much"}).find("needs a number"),
            std::string::npos);
}

TEST(Options, ConfigFileGivesWhatTheLineDoesNot) {
  const std::string path = testing::TempDir() + "m2_options.yaml";
  std::ofstream(path) << "port: 9000\nmax_num_seqs: 3\nserved-model-name: [x, y]\n";
  const Result<Values> values = parse({"--config", path, "--port", "9001"});
  ASSERT_TRUE(values.ok()) << values.error().text;
  EXPECT_EQ(values->integer("port"), 9001);
  EXPECT_EQ(values->integer("max-num-seqs"), 3);
  EXPECT_EQ(values->list("served-model-name"), (std::vector<std::string>{"x", "y"}));

  std::ofstream(path) << "no-enable-prefix-caching: true\nno_enable_chunked_prefill: false\n";
  const Result<Values> off = parse({"--config", path});
  ASSERT_TRUE(off.ok()) << off.error().text;
  EXPECT_FALSE(off->flag("enable-prefix-caching"));
  EXPECT_TRUE(off->flag("enable-chunked-prefill"));

  std::ofstream(path) << "no-enable-prefix-caching: maybe\n";
  EXPECT_NE(error_of({"--config", path}).find("needs true or false"), std::string::npos);
  for (const char* odd : {"served-model-name: [{a: b}]\n", "? [a, b]\n: c\n", "port: {a: 1}\n",
                          "compilation-config: {[a]: 1}\n"}) {
    std::ofstream(path) << odd;
    EXPECT_NE(error_of({"--config", path}).find(path), std::string::npos) << odd;
  }
  std::ofstream(path) << "no-such: 1\n";
  EXPECT_NE(error_of({"--config", path}).find("--no-such"), std::string::npos);
  std::ofstream(path) << "[: {";
  EXPECT_NE(error_of({"--config", path}).find(path), std::string::npos);
  EXPECT_NE(error_of({"--config", "/absent.yaml"}).find("/absent.yaml"), std::string::npos);
  std::remove(path.c_str());
}

TEST(Options, SwitchesOfAConfigFileAreYamls) {
  const std::string path = testing::TempDir() + "m2_switches.yaml";
  const auto caching = [&](const std::string& line) -> std::optional<bool> {
    std::ofstream(path) << line << "\n";
    const Result<Values> values = parse({"--config", path});
    if (!values.ok()) return std::nullopt;
    return values->flag("enable-prefix-caching");
  };
  for (const char* on : {"true", "True", "yes", "on", "1"}) {
    EXPECT_EQ(caching(std::string("enable-prefix-caching: ") + on), true) << on;
    EXPECT_EQ(caching(std::string("no-enable-prefix-caching: ") + on), false) << on;
  }
  for (const char* off : {"false", "FALSE", "no", "off", "0"}) {
    EXPECT_EQ(caching(std::string("enable_prefix_caching: ") + off), false) << off;
    EXPECT_EQ(caching(std::string("no_enable_prefix_caching: ") + off), true) << off;
  }
  for (const char* bad : {"maybe", "[true]", "{a: true}", ""})
    EXPECT_EQ(caching(std::string("enable-prefix-caching: ") + bad), std::nullopt) << bad;
  EXPECT_EQ(caching("# nothing yet"), true);
  std::remove(path.c_str());
  EXPECT_TRUE(error_of({"--config", testing::TempDir()})
                  .starts_with("--config " + testing::TempDir() + ": "));
}

TEST(Options, TheEnvironmentComesLast) {
  const auto environment = [](const char* name) -> const char* {
    return std::string_view(name) == "VLLM_API_KEY" ? "secret" : nullptr;
  };
  EXPECT_EQ(parse({}, environment)->list("api-key"), std::vector<std::string>{"secret"});
  EXPECT_EQ(parse({"--api-key", "mine"}, environment)->list("api-key"),
            std::vector<std::string>{"mine"});
}

TEST(Options, HelpNamesEveryOptionWithItsDefault) {
  const Command command{"serve", "MODEL", "Serve it.", "", serve_options()};
  const std::string help = help_text(command, "");
  for (const Option& option : serve_options())
    EXPECT_NE(help.find("--" + std::string(option.name)), std::string::npos) << option.name;
  EXPECT_NE(help.find("Port to listen on; 0 takes a free one and prints it. [8000]"),
            std::string::npos);
  EXPECT_EQ(help_text(command, "cache").find("--port"), std::string::npos);
  const std::string nothing = help_text(command, "nonsense");
  EXPECT_NE(nothing.find("No group of options is called nonsense, nor is any option. Groups: "
                         "server; chat, tools; model; load;"),
            std::string::npos);
  EXPECT_EQ(nothing.find("--port"), std::string::npos);
}

TEST(Options, HelpLeavesBorrowedOptionsToAll) {
  static constexpr Option kOptions[] = {
      {"own", "", "eval", OptionKind::flag, "", "Its own."},
      {"port", "", "server", OptionKind::integer, "", "Somebody else's."}};
  const Command command{"eval", "", "Ask it.", "", kOptions, 1};
  const std::string help = help_text(command, "");
  EXPECT_NE(help.find("--own"), std::string::npos);
  EXPECT_EQ(help.find("--port"), std::string::npos);
  EXPECT_NE(help.find("m2 eval --help=all"), std::string::npos);
  for (const char* group : {"all", "server", "port"})
    EXPECT_NE(help_text(command, group).find("--port"), std::string::npos) << group;
}

TEST(Options, DefaultsAreOfTheirKind) {
  for (const Option& option : serve_options()) {
    if (option.fallback.empty()) continue;
    if (option.kind == OptionKind::integer) {
      EXPECT_TRUE(parse_human_integer(option.fallback)) << option.name;
    }
    if (option.kind == OptionKind::flag) {
      EXPECT_TRUE(option.fallback == "true" || option.fallback == "false") << option.name;
    }
  }
}

}  // namespace
}  // namespace m2::app
