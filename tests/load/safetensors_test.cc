#include "load/safetensors.h"

#include <gtest/gtest.h>

#include <ctime>

#include "tests/load/test_checkpoint.h"
#include "tests/time_factor.h"

namespace m2::load {
namespace {

using test::StoredTensor;
using test::TempFolder;

Result<std::vector<TensorInfo>> parse(const std::string& header, uint64_t data_bytes) {
  return parse_safetensors_header(header, 8 + header.size(), data_bytes);
}

// The error a header is refused with, or "accepted".
std::string refusal(const std::string& header, uint64_t data_bytes = 8) {
  const auto result = parse(header, data_bytes);
  return result.ok() ? "accepted" : result.error().text;
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
  return R"({"a":)" + entry(dtype, shape, offsets) + "}";
}

TEST(Safetensors, ReadsNamesShapesAndPlaces) {
  const std::string header = R"({"__metadata__":{"format":"pt"},"b":)" +
                             entry("BF16", "[2,3]", "[4,16]") + R"(,"a":)" +
                             entry("F32", "[]", "[0,4]") + "}   ";
  const auto tensors = parse(header, 16);
  ASSERT_TRUE(tensors.ok()) << tensors.error().text;
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].shape, std::vector<int64_t>{});
  EXPECT_EQ((*tensors)[0].bytes, 4u);
  EXPECT_EQ((*tensors)[1].name, "b");
  EXPECT_EQ((*tensors)[1].dtype, DType::bf16);
  EXPECT_EQ((*tensors)[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*tensors)[1].begin, 8 + header.size() + 4);
  EXPECT_EQ((*tensors)[1].describe(), "BF16[2, 3]");
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(refusal("{}", 0), "accepted");
  EXPECT_EQ(refusal(one_tensor("F32", "[0]", "[0,0]"), 0), "accepted");
  EXPECT_EQ(refusal(one_tensor("F32", "[0,4194305]", "[0,0]"), 0), "accepted");
  EXPECT_EQ(refusal(one_tensor("U8", "[3]", "[0,3]"), 3), "accepted") << "no alignment";
  EXPECT_EQ(refusal(one_tensor("F4", "[6]", "[0,3]"), 3), "accepted") << "six halves of a byte";
  EXPECT_EQ(refusal(R"({"__metadata__":{"a":"b"}})", 0), "accepted");
}

TEST(Safetensors, KnowsOtherDTypesWithoutUsingThem) {
  const auto complex = parse(one_tensor("C64", "[1]", "[0,8]"), 8);
  ASSERT_TRUE(complex.ok());
  EXPECT_FALSE((*complex)[0].dtype.has_value());
  EXPECT_EQ(refusal(one_tensor("C64", "[2]", "[0,8]")),
            "tensor a: shape [2] of C64 does not fit its 8 bytes");
  // A dtype from the future only matters to one who wants that tensor.
  const auto future = parse(one_tensor("Q3_X", "[7]", "[0,8]"), 8);
  ASSERT_TRUE(future.ok());
  EXPECT_FALSE((*future)[0].dtype.has_value());
  EXPECT_EQ((*future)[0].dtype_name, "Q3_X");
}

TEST(Safetensors, RefusesGapsOverlapsAndTrailingBytes) {
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":)" + entry("U8", "[4]", a) + R"(,"b":)" + entry("U8", "[4]", b) + "}";
  };
  EXPECT_EQ(refusal(two("[0,4]", "[4,8]")), "accepted");
  EXPECT_EQ(refusal(two("[4,8]", "[0,4]")), "accepted") << "order in the header is free";
  EXPECT_NE(refusal(two("[0,4]", "[0,4]")).find("tensor b: data_offsets [0, 4]"),
            std::string::npos);
  EXPECT_NE(refusal(two("[0,4]", "[3,7]")).find("tensor b"), std::string::npos);
  EXPECT_NE(refusal(two("[0,4]", "[5,9]"), 9).find("tensor b"), std::string::npos);
  EXPECT_NE(refusal(two("[1,5]", "[5,9]"), 9).find("tensor a"), std::string::npos);
  EXPECT_NE(refusal(two("[0,4]", "[4,8]"), 9).find("end at byte 8"), std::string::npos);
  EXPECT_NE(refusal(two("[0,4]", "[4,8]"), 7).find("tensor b"), std::string::npos);
  EXPECT_NE(refusal(one_tensor("U8", "[4]", "[8,4]")).find("tensor a"), std::string::npos);
}

TEST(Safetensors, RefusesDuplicatesAndStrangersInTheHeader) {
  const std::string a = entry("U8", "[8]", "[0,8]");
  EXPECT_EQ(refusal(R"({"a":)" + a + R"(,"a":)" + a + "}"), "tensor a: the name appears twice");
  EXPECT_NE(refusal(R"({"a":{"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}})")
                .find("field dtype appears twice"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0).find("twice"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"a":{"dtype":"U8","shape":[8]}})").find("missing"), std::string::npos);
  EXPECT_NE(refusal(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1}})")
                .find("unknown field \"x\""),
            std::string::npos);
  for (const char* bad : {"",
                          " {}",
                          "[]",
                          "3",
                          "null",
                          R"({"a":3})",
                          R"({"a":[]})",
                          R"({"a":null})",
                          R"({"a":{"dtype":3,"shape":[8],"data_offsets":[0,8]}})",
                          R"({"a":{"dtype":"U8","shape":8,"data_offsets":[0,8]}})",
                          R"({"a":{"dtype":"U8","shape":[[8]],"data_offsets":[0,8]}})",
                          R"({"a":{"dtype":"U8","shape":["8"],"data_offsets":[0,8]}})",
                          R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0]}})",
                          R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,4,8]}})",
                          R"({"a":{"dtype":"U8","shape":[8],"data_offsets":"0,8"}})",
                          R"({"a":{"dtype":["U8"],"shape":[8],"data_offsets":[0,8]}})",
                          R"({"a":{"dtype":{},"shape":[8],"data_offsets":[0,8]}})",
                          R"({"__metadata__":{"a":{}}})",
                          R"({"__metadata__":3})",
                          R"({} x)",
                          R"({}{})",
                          R"({"a":)"})
    EXPECT_NE(refusal(bad), "accepted") << bad;
}

TEST(Safetensors, RefusesAZeroByteAndWhatFollows) {
  const std::string header = one_tensor("U8", "[8]", "[0,8]");
  EXPECT_EQ(refusal(header), "accepted");
  EXPECT_NE(refusal(header + std::string("\0anything", 9)), "accepted");
}

TEST(Safetensors, RefusesHostileIntegersInEveryPlace) {
  for (const char* number : {"-1",
                             "-9223372036854775808",
                             "2147483647",
                             "2147483648",
                             "2147483649",
                             "4294967295",
                             "4294967296",
                             "4294967297",
                             "9007199254740992",
                             "9223372036854775807",
                             "9223372036854775808",
                             "18446744073709551615",
                             "18446744073709551616",
                             "1e308",
                             "1e999",
                             "1.0",
                             "0.5",
                             "-0",
                             "null",
                             "\"x\"",
                             "true",
                             "99999999999999999999999999"}) {
    const std::string n = number;
    EXPECT_NE(refusal(one_tensor("F32", "[" + n + "]", "[0,8]")), "accepted") << n;
    EXPECT_NE(refusal(one_tensor("F32", "[2," + n + "]", "[0,8]")), "accepted") << n;
    EXPECT_NE(refusal(one_tensor("F32", "[2]", "[" + n + ",8]")), "accepted") << n;
    EXPECT_NE(refusal(one_tensor("F32", "[2]", "[0," + n + "]")), "accepted") << n;
    EXPECT_NE(refusal(one_tensor("X", "[" + n + "]", "[" + n + "," + n + "]")), "accepted") << n;
  }
}

TEST(Safetensors, RefusesShapesWhoseProductWraps) {
  // The product is 2^64 + 8 (mod 2^64: 8), and others that wrap to the right number.
  EXPECT_NE(refusal(one_tensor("U8", "[4194305,4194305,211106198978564]", "[0,8]")), "accepted");
  EXPECT_NE(refusal(one_tensor("F32", "[4611686018427387906]", "[0,8]")), "accepted");
  EXPECT_NE(refusal(one_tensor("F32", "[4294967296,4294967296,2]", "[0,8]")), "accepted");
  EXPECT_NE(refusal(one_tensor("F32", "[9223372036854775807,9223372036854775807,0]", "[0,0]"), 0),
            "accepted");
}

TEST(Safetensors, LimitsTheNumberOfAxes) {
  std::string shape = "[1";
  for (int i = 1; i < 16; ++i) shape += ",1";
  EXPECT_EQ(refusal(one_tensor("F64", shape + "]", "[0,8]")), "accepted");
  EXPECT_NE(refusal(one_tensor("F64", shape + ",1]", "[0,8]")), "accepted");
}

TEST(Safetensors, DeepNestingIsRefusedWithoutRecursion) {
  EXPECT_NE(refusal(R"({"a":)" + std::string(10'000'000, '[')), "accepted");
  EXPECT_NE(refusal(std::string(1'000'000, '{')), "accepted");
}

TEST(Safetensors, ReadsAHundredThousandEntriesInASecond) {
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i) {
    if (i) header += ",";
    header += "\"model.layers." + std::to_string(i) + R"(.block_sparse_moe.experts.w1.weight":)" +
              entry("F8_E4M3", "[2,2]",
                    "[" + std::to_string(4 * i) + "," + std::to_string(4 * i + 4) + "]");
  }
  header += "}";
  const std::clock_t start = std::clock();  // CPU time: other programs may be running
  const auto tensors = parse(header, 400'000);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(tensors.ok());
  EXPECT_EQ(tensors->size(), 100'000u);
  EXPECT_LT(seconds, 1.0 * kTimeFactor);
  RecordProperty("milliseconds", static_cast<int>(seconds * 1000));
}

// ---- Files ----

std::string file_refusal(const std::string& bytes) {
  TempFolder folder;
  test::write_file(folder / "x.safetensors", bytes);
  const auto file = File::open(folder / "x.safetensors");
  const auto tensors = read_safetensors_header(*file);
  if (tensors.ok()) return "accepted";
  EXPECT_NE(tensors.error().text.find("x.safetensors"), std::string::npos);
  EXPECT_EQ(tensors.error().code, Code::corrupt);
  return tensors.error().text;
}

std::string length_prefix(uint64_t length) {
  return std::string(reinterpret_cast<const char*>(&length), 8);
}

TEST(SafetensorsFile, RefusesHeadersThatDoNotFit) {
  EXPECT_NE(file_refusal(""), "accepted");
  EXPECT_NE(file_refusal("1234567"), "accepted");
  EXPECT_NE(file_refusal(length_prefix(0)), "accepted");
  EXPECT_EQ(file_refusal(length_prefix(2) + "{}"), "accepted");
  for (const uint64_t length :
       std::vector<uint64_t>{3, kMaxHeaderBytes, kMaxHeaderBytes + 1, 1u << 31, 1ull << 32,
                             1ull << 53, 1ull << 63, UINT64_MAX, UINT64_MAX - 7})
    EXPECT_NE(file_refusal(length_prefix(length) + "{}"), "accepted") << length;
}

std::string small_file() {
  return test::safetensors({{"model.norm.weight", "BF16", {4}, test::random_bytes(8, 1)},
                            {"lm_head.weight", "F32", {2, 3}, test::random_bytes(24, 2)},
                            {"q.weight", "F8_E4M3", {3, 5}, test::random_bytes(15, 3)},
                            {"q.weight_scale_inv", "F32", {1, 1}, test::random_bytes(4, 4)}});
}

TEST(SafetensorsFile, RefusesEveryTruncation) {
  const std::string whole = small_file();
  ASSERT_EQ(file_refusal(whole), "accepted");
  for (size_t size = 0; size < whole.size(); ++size)
    ASSERT_NE(file_refusal(whole.substr(0, size)), "accepted") << size;
  EXPECT_NE(file_refusal(whole + "x"), "accepted");
  EXPECT_NE(file_refusal(whole.substr(0, whole.size() - 1)).find("tensor q.weight_scale_inv"),
            std::string::npos)
      << "the tensor that is cut is named";
}

// Nobody who asks for `changed` gets anything but what `original` is. (A dtype that is not known is
// refused when the tensor is asked for.)
bool harmless(const TensorInfo& original, const TensorInfo& changed) {
  return !changed.dtype || (original.dtype == changed.dtype && original.shape == changed.shape &&
                            original.begin == changed.begin && original.bytes == changed.bytes);
}

// Whether a changed header is refused, or says the same of every tensor it still names.
testing::AssertionResult refused_or_same(const std::string& header, uint64_t data_bytes,
                                         const std::vector<TensorInfo>& original) {
  const auto changed = parse(header, data_bytes);
  if (!changed.ok()) return testing::AssertionSuccess();
  for (const TensorInfo& tensor : *changed)
    for (const TensorInfo& old : original)
      if (old.name == tensor.name && !harmless(old, tensor))
        return testing::AssertionFailure() << old.name << " changed: " << header;
  return testing::AssertionSuccess();
}

TEST(SafetensorsFile, EveryBitFlipInTheHeaderIsRefusedOrChangesNothing) {
  const std::string file = small_file();
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::string header = file.substr(8, length);
  const uint64_t data_bytes = file.size() - 8 - length;
  const auto original = parse(header, data_bytes);
  ASSERT_TRUE(original.ok());
  for (size_t bit = 0; bit < header.size() * 8; ++bit) {
    std::string flipped = header;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    ASSERT_TRUE(refused_or_same(flipped, data_bytes, *original)) << "bit " << bit;
  }
  // The length before the header: any other value moves the data or cuts the JSON.
  for (size_t bit = 0; bit < 64; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    ASSERT_NE(file_refusal(flipped), "accepted") << "bit " << bit << " of the length";
  }
}

TEST(SafetensorsFile, RandomMutationsNeverCrash) {
  const std::string file = small_file();
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::string header = file.substr(8, length);
  std::mt19937_64 random(7);
  int accepted = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string changed = header;
    for (uint64_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % changed.size();
      switch (random() % 4) {
        case 0:
          changed[at] = static_cast<char>(random());
          break;
        case 1:
          changed.erase(at, 1 + random() % 8);
          break;
        case 2:
          changed.insert(at, 1, "[]{}\",:0918"[random() % 11]);
          break;
        default:
          changed.insert(at, changed.substr(random() % changed.size(), random() % 40));
      }
      if (changed.empty()) changed = "{";
    }
    accepted += parse(changed, file.size() - 8 - length).ok() ? 1 : 0;
  }
  EXPECT_LT(accepted, 25'000);
}

}  // namespace
}  // namespace m2::load
