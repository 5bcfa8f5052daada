# The C++ core of xgrammar, from the sources that tools/fetch-xgrammar unpacks: a static library
# with its own standard and flags, whose headers are system headers here.
set(xgrammar_source ${CMAKE_SOURCE_DIR}/.cache/xgrammar)
execute_process(COMMAND ${CMAKE_SOURCE_DIR}/tools/fetch-xgrammar ${xgrammar_source}
                RESULT_VARIABLE xgrammar_missing)
if(xgrammar_missing)
  message(FATAL_ERROR "The sources of xgrammar could not be fetched. Run tools/setup, which says why.")
endif()

file(GLOB_RECURSE xgrammar_sources ${xgrammar_source}/cpp/*.cc)
list(FILTER xgrammar_sources EXCLUDE REGEX "/cpp/tvm_ffi/")
add_library(xgrammar STATIC ${xgrammar_sources})
set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17)
target_include_directories(xgrammar SYSTEM PUBLIC ${xgrammar_source}/include ${xgrammar_source}/cpp
    ${xgrammar_source}/3rdparty/picojson ${xgrammar_source}/3rdparty/dlpack/include)
target_compile_definitions(xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
target_compile_options(xgrammar PRIVATE -w)
if(M2_SANITIZE)
  # Its bitsets copy zero bytes from null, which does nothing anywhere.
  target_compile_options(xgrammar PRIVATE -O1 -fsanitize=${M2_SANITIZE} -fno-sanitize-recover=all
      -fno-sanitize=nonnull-attribute)
else()
  target_compile_options(xgrammar PRIVATE -O3)
endif()
