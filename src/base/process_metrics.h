#pragma once

#include <string>

namespace m2 {

// What Prometheus's client libraries say of every process, in the text format of Metrics::render():
// process_cpu_seconds_total, process_open_fds, process_max_fds, process_resident_memory_bytes,
// process_virtual_memory_bytes, process_start_time_seconds
// (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics). Read from /proc;
// what cannot be read is left out.
std::string process_metrics();

}  // namespace m2
