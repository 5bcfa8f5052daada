# The CUDA bodies of the operations, and of sums over ranks (src/parallel/cuda). Included by every build, because the
# folders' host sources are found by the rooms' globs: without M2_CUDA only the pure plans and the stubs stay.
# nvcc sees only *.cu and what they include (no base/ or tensor/ headers but dtype.h).

function(m2_drop_sources target pattern)
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources EXCLUDE REGEX ${pattern})
  set_target_properties(${target} PROPERTIES SOURCES "${sources}")
endfunction()

if(NOT M2_CUDA)
  m2_drop_sources(m2_ops "src/ops/cuda/bodies\\.cc$")
  m2_drop_sources(m2_tensor "src/tensor/cuda_device\\.cc$")
  return()
endif()
m2_drop_sources(m2_ops "src/ops/cuda/stub\\.cc$")
m2_drop_sources(m2_parallel "src/parallel/cuda/stub\\.cc$")
m2_drop_sources(m2_tensor "src/tensor/cuda_device_stub\\.cc$")

# An installed toolkit, or one made from wheels.
if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/tools/setup-cuda OUTPUT_VARIABLE cuda_home
      OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(CMAKE_CUDA_COMPILER ${cuda_home}/bin/nvcc CACHE FILEPATH "CUDA compiler")
endif()
# sm_90a has Hopper's own instructions. Others, e.g. "75-real;80-real;90a-real", get the portable path.
set(CMAKE_CUDA_ARCHITECTURES 90a-real CACHE STRING "GPU architectures to compile for")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc speaks C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
# Not find_package(CUDAToolkit): CMake 3.25's does not know CUDA 13.
find_library(M2_CUDART cudart_static HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}/..
    ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} PATH_SUFFIXES lib lib64 REQUIRED)
add_library(m2_cudart INTERFACE)
target_include_directories(m2_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(m2_cudart INTERFACE ${M2_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/ops/cuda/*.cu
    ${CMAKE_SOURCE_DIR}/src/parallel/cuda/*.cu)
add_library(m2_cuda_kernels STATIC ${cuda_sources})
target_include_directories(m2_cuda_kernels PRIVATE ${CMAKE_SOURCE_DIR}/src)
target_compile_options(m2_cuda_kernels PRIVATE --expt-relaxed-constexpr -lineinfo)
# PRIVATE: nothing above sees CUDA's headers, so all else compiles as it does without CUDA.
target_link_libraries(m2_cuda_kernels PRIVATE m2_cudart)
target_link_libraries(m2_ops PRIVATE m2_cuda_kernels m2_cudart)
target_link_libraries(m2_parallel PRIVATE m2_cuda_kernels)
# Kernels call back what bodies.cc has of the host's side (cuda_failed); only to link.
target_link_libraries(m2_cuda_kernels INTERFACE $<LINK_ONLY:m2_ops>)
target_link_libraries(m2_tensor PRIVATE m2_cudart)
string(REPLACE ";" "," architectures "${CMAKE_CUDA_ARCHITECTURES}")
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/tensor/cuda_device.cc PROPERTIES
    COMPILE_DEFINITIONS M2_CUDA_ARCHITECTURES="${architectures}")

# What stands in for all this without M2_CUDA has to keep compiling, too.
if(M2_TESTS)
  enable_testing()
  add_library(m2_cuda_stubs OBJECT ${CMAKE_SOURCE_DIR}/src/ops/cuda/stub.cc ${CMAKE_SOURCE_DIR}/src/parallel/cuda/stub.cc
      ${CMAKE_SOURCE_DIR}/src/tensor/cuda_device_stub.cc)
  target_link_libraries(m2_cuda_stubs PRIVATE m2_ops)
endif()
add_subdirectory(${CMAKE_SOURCE_DIR}/tests/ops/cuda ${CMAKE_BINARY_DIR}/tests/ops/cuda)
add_subdirectory(${CMAKE_SOURCE_DIR}/tests/model/cuda ${CMAKE_BINARY_DIR}/tests/model/cuda)
add_subdirectory(${CMAKE_SOURCE_DIR}/bench/model/cuda ${CMAKE_BINARY_DIR}/bench/model/cuda)
