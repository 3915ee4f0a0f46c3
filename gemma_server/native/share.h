// Work of a kernel, shared among XLA's threads.

#ifndef GEMMA_SERVER_NATIVE_SHARE_H_
#define GEMMA_SERVER_NATIVE_SHARE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

// Runs work(0), work(1), ... work(parts - 1), each once, on the pool's threads and this one.
template <typename Work>
void share(xla::ffi::ThreadPool pool, int64_t parts, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  // Shared, because a helper may come to look for work when all is done and this call is over.
  auto state = std::make_shared<State>();
  const auto help = [state, parts, &work] {
    for (int64_t part; (part = state->next++) < parts;) {
      work(part);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1; i < std::min(pool.num_threads(), parts); i++) {
    auto helper = help;
    pool.Schedule(std::move(helper));
  }
  help();
  while (state->done.load(std::memory_order_acquire) < parts) std::this_thread::yield();
}

#endif  // GEMMA_SERVER_NATIVE_SHARE_H_
