#include "server/doorbell.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace m2::server {

std::unique_ptr<Doorbell> Doorbell::make(size_t listeners) {
  std::unique_ptr<Doorbell> out(new Doorbell);
  if (!out->connect(listeners)) return nullptr;
  return out;
}

Doorbell::~Doorbell() {
  for (const int ear : ears_) ::close(ear);
  for (const int bell : bells_) ::close(bell);
}

bool Doorbell::connect(size_t listeners) {
  for (size_t i = 0; i < listeners; ++i) {
    if (const int bell = ::eventfd(0, EFD_CLOEXEC); bell >= 0) bells_.push_back(bell);
    if (const int ear = ::epoll_create1(EPOLL_CLOEXEC); ear >= 0) ears_.push_back(ear);
  }
  if (bells_.size() < listeners || ears_.size() < listeners) return false;
  epoll_event event{EPOLLIN | EPOLLET, {}};
  for (size_t bell = 0; bell < listeners; ++bell) {
    // Who began to watch last is woken first.
    for (size_t i = 1; i <= listeners; ++i) {
      const int ear = ears_[(bell + i) % listeners];
      if (::epoll_ctl(ear, EPOLL_CTL_ADD, bells_[bell], &event) != 0) return false;
    }
  }
  return true;
}

void Doorbell::ring(size_t first) {
  ::eventfd_write(bells_[first], 1);
}

void Doorbell::hush(size_t i) {
  epoll_event event;
  while (::epoll_wait(ears_[i], &event, 1, 0) > 0) {
  }
}

}  // namespace m2::server
