#include "tensor/cuda_device.h"

#include <cuda_runtime_api.h>

#include "base/check.h"
#include "tensor/cuda_architectures.h"

namespace m2::cuda_device {
namespace {

// The runtime's own words, with a hint where the cause is the machine rather than this program.
void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]]
    return;
  const bool driver = status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice ||
                      status == cudaErrorSystemDriverMismatch;
  M2_CHECK(false, "{}: {}{}", what, cudaGetErrorString(status),
           driver ? " (this machine has no usable NVIDIA driver; use --device cpu, or install a "
                    "driver for CUDA 13)"
                  : "");
}

cudaStream_t stream_of(const Exec& exec) {
  return static_cast<cudaStream_t>(exec.stream);
}

Error driver_error(cudaError_t status) {
  return fail(Code::unavailable,
              "no GPU can be used: {} (this build needs an NVIDIA driver for CUDA {}); use "
              "--device cpu",
              cudaGetErrorString(status), CUDART_VERSION / 1000);
}

}  // namespace

Result<void> check(Device device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return driver_error(status);
  if (device.index >= count)
    return fail(Code::unavailable, "GPU {} does not exist: this machine has {}", device.index,
                count);
  int major = 0, minor = 0;
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index),
          "asking for the compute capability");
  require(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index),
          "asking for the compute capability");
  if (!runs_on_gpu(M2_CUDA_ARCHITECTURES, major, minor))
    return fail(Code::unsupported,
                "GPU {} has compute capability {}.{}, and this build has code for {}: build with "
                "-DCMAKE_CUDA_ARCHITECTURES={}{}-real, or use --device cpu",
                device.index, major, minor, M2_CUDA_ARCHITECTURES, major, minor);
  const cudaError_t chosen = cudaSetDevice(device.index);  // makes the context
  if (chosen != cudaSuccess) return driver_error(chosen);
  return {};
}

void use(Device device) {
  require(cudaSetDevice(device.index), "choosing the GPU");
}

DeviceMemory memory(Device device) {
  use(device);
  size_t free_bytes = 0, total_bytes = 0;
  require(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the GPU's memory");
  return {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

bool reach(Device from, Device to) {
  int can = 0;
  require(cudaDeviceCanAccessPeer(&can, from.index, to.index), "asking whether GPUs reach another");
  if (can == 0) return false;
  use(from);
  const cudaError_t status = cudaDeviceEnablePeerAccess(to.index, 0);
  if (status == cudaSuccess) return true;
  (void)cudaGetLastError();  // it would be taken for the next call's
  return status == cudaErrorPeerAccessAlreadyEnabled;
}

int count() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

std::string driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "";
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

DeviceLink link(Device from, Device to) {
  const auto ask = [&](cudaDeviceP2PAttr attribute) {
    int value = 0;
    require(cudaDeviceGetP2PAttribute(&value, attribute, from.index, to.index),
            "asking how GPUs reach another");
    return value != 0;
  };
  return {ask(cudaDevP2PAttrAccessSupported), ask(cudaDevP2PAttrNativeAtomicSupported)};
}

void copy_between(const Exec& exec, Device to_device, void* to, Device from_device,
                  const void* from, int64_t bytes) {
  require(cudaMemcpyPeerAsync(to, to_device.index, from, from_device.index,
                              static_cast<size_t>(bytes), stream_of(exec)),
          "copying between GPUs");
}

void* allocate(Device device, int64_t bytes) {
  require(cudaSetDevice(device.index), "choosing the GPU");
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  size_t free_bytes = 0, total_bytes = 0;
  if (status == cudaErrorMemoryAllocation) cudaMemGetInfo(&free_bytes, &total_bytes);
  M2_CHECK(status != cudaErrorMemoryAllocation,
           "GPU {} is out of memory: {} bytes asked for, {} of {} free", device.index, bytes,
           free_bytes, total_bytes);
  require(status, "allocating GPU memory");
  return memory;
}

// Nothing can be freed after a fault of the device; the end of the process frees it.
void free(Device, void* memory) {
  (void)cudaFree(memory);
}

void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes) {
  require(cudaMemcpyAsync(to, from_host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                          stream_of(exec)),
          "copying to the GPU");
}

void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes) {
  require(cudaMemcpyAsync(to_host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                          stream_of(exec)),
          "copying from the GPU");
}

void clear(const Exec& exec, void* memory, int64_t bytes) {
  require(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_of(exec)),
          "clearing memory of the GPU");
}

void synchronize(const Exec& exec) {
  require(cudaStreamSynchronize(stream_of(exec)), "waiting for the GPU");
}

void* allocate_pinned(int64_t bytes) {
  void* memory = nullptr;
  require(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable),
          "allocating pinned memory");
  return memory;
}

void free_pinned(void* memory) {
  (void)cudaFreeHost(memory);
}

void* make_stream(Device device) {
  use(device);
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return stream;
}

void free_stream(void* stream) {
  (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}

void* make_event(Device device) {
  use(device);
  cudaEvent_t event = nullptr;
  require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return event;
}

void free_event(void* event) {
  (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void record_event(const Exec& exec, void* event) {
  require(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(exec)), "recording an event");
}

Result<void> wait_event(void* event) {
  const cudaError_t status = cudaEventSynchronize(static_cast<cudaEvent_t>(event));
  if (status == cudaSuccess) return {};
  return fail(Code::internal, "the GPU failed: {}", cudaGetErrorString(status));
}

void begin_recording(const Exec& exec) {
  require(cudaStreamBeginCapture(stream_of(exec), cudaStreamCaptureModeThreadLocal),
          "recording a graph");
}

void* end_recording(const Exec& exec) {
  cudaGraph_t graph = nullptr;
  require(cudaStreamEndCapture(stream_of(exec), &graph), "recording a graph");
  cudaGraphExec_t ready = nullptr;
  require(cudaGraphInstantiate(&ready, graph, 0), "making a graph ready");
  require(cudaGraphDestroy(graph), "freeing a recording");
  require(cudaGraphUpload(ready, stream_of(exec)), "sending a graph to the GPU");
  return ready;
}

void free_graph(void* graph) {
  (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

void launch_graph(const Exec& exec, void* graph) {
  require(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(exec)),
          "launching a graph");
}

std::string describe(Device device) {
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, device.index), "asking about the GPU");
  return fmt::format("{}, compute capability {}.{}, {} multiprocessors, {} MiB", properties.name,
                     properties.major, properties.minor, properties.multiProcessorCount,
                     properties.totalGlobalMem >> 20);
}

}  // namespace m2::cuda_device
