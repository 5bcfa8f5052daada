#include "app/app.h"

namespace m2::app {
int run(int, char**) {
  return 0;
}
}  // namespace m2::app
