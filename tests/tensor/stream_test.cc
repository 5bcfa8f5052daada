// Covers: tensor/stream.h, tensor/staging.h
#include "tensor/stream.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/staging.h"

namespace m2 {
namespace {

const Device kGpu{DeviceKind::cuda, 0};

// The CPU always, a GPU where there is one.
std::vector<Device> devices() {
  std::vector<Device> out{Device{}};
  if (check_device(kGpu).ok()) out.push_back(kGpu);
  return out;
}

TEST(StreamTest, ADeviceThatCannotBeUsedSaysWhy) {
  EXPECT_TRUE(check_device(Device{}).ok());
  const Result<void> gpu = check_device(kGpu);
  if (!gpu.ok()) {
    EXPECT_NE(gpu.error().text.find("use --device cpu"), std::string::npos);
  }
  EXPECT_FALSE(can_record(Device{}));
}

// What goes through the pinned ring, piece after piece, comes back from the device.
TEST(StreamTest, StagingBringsEveryPieceToItsPlace) {
  for (const Device device : devices()) {
    constexpr int64_t kPiece = 1 << 16, kPieces = 9;
    const Buffer there(device, kPiece * kPieces);
    std::vector<std::byte> sent(static_cast<size_t>(kPiece * kPieces));
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 7 + i / 251);
    {
      Staging staging(device, kPiece);
      for (int64_t p = 0; p < kPieces; ++p) {
        const Result<std::byte*> place = staging.take();
        ASSERT_TRUE(place.ok());
        std::memcpy(*place, sent.data() + p * kPiece, kPiece);
        staging.send(there.data() + p * kPiece, p + 1 < kPieces ? kPiece : kPiece / 2);
      }
      ASSERT_TRUE(staging.finish().ok());
    }
    Stream stream(device);
    const Exec exec{device, nullptr, stream.handle()};
    HostBuffer back(device, there.bytes());
    copy_to_host(exec, back.data(), there.data(), there.bytes());
    Event done(device);
    done.record(exec);
    ASSERT_TRUE(done.wait().ok());
    EXPECT_EQ(0, std::memcmp(back.data(), sent.data(), sent.size() - kPiece / 2));
  }
}

TEST(StreamTest, HostBuffersMove) {
  HostBuffer a(Device{}, 100);
  std::byte* data = a.data();
  HostBuffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  HostBuffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.bytes(), 100);
}

// Without a driver nothing is counted and nothing fails; a GPU that can be used is among those
// counted.
TEST(StreamTest, GpusAreCounted) {
  const bool usable = check_device({DeviceKind::cuda, 0}).ok();
  EXPECT_GE(gpu_count(), usable ? 1 : 0);
  EXPECT_TRUE(gpu_count() == 0 || !driver_version().empty());
  EXPECT_FALSE(check_device({DeviceKind::cuda, gpu_count()}).ok());
}

}  // namespace
}  // namespace m2
