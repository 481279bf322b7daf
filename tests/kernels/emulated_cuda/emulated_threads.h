// The threads of emulated_cuda.h: fibers, the barriers at which they wait for each other, and launches.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

inline bool backwards = false;
inline int largest_shared_bytes = 0;  // of any launch
inline int allowed_shared_bytes = 48 * 1024;

constexpr std::size_t kStackBytes = 256 * 1024, kPage = 4096;

enum class Stop { kBlock, kWarp, kEnd };

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool begun = false;
  Stop stop = Stop::kEnd;
  int line = 0;
  unsigned exchanges = 0;
  int vote = 0;
};

inline std::vector<Fiber> fibers;
inline unsigned char* stacks = nullptr;
inline int current = 0;
inline jmp_buf scheduler;
inline const std::function<void()>* body = nullptr;
inline std::uint64_t slots[32][2][32];  // what a lane hands over; two, so that a lane may be one exchange ahead
inline int any_vote = 0;
inline unsigned char* shared_start = nullptr;

[[noreturn]] inline void fail(const char* what, int one, int other) {
  std::fprintf(stderr, "emulated CUDA: %s (%d, %d), thread %u, block %u %u\n", what, one, other, threadIdx.x,
               blockIdx.x, blockIdx.y);
  std::fflush(stderr);
  std::abort();
}

inline void run_body() {
  (*body)();
  fibers[current].stop = Stop::kEnd;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void stop_at(Stop stop, int line) {
  Fiber& fiber = fibers[current];
  fiber.stop = stop;
  fiber.line = line;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void run(int thread) {
  current = thread;
  threadIdx = dim3(static_cast<unsigned>(thread));
  if (_setjmp(scheduler) != 0) return;
  Fiber& fiber = fibers[thread];
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

inline void expect_alike(int first, int count) {
  for (int i = first; i < first + count; ++i) {
    threadIdx = dim3(static_cast<unsigned>(i));
    if (fibers[i].stop != fibers[first].stop)
      fail("a thread ended or waits at another kind of barrier, lines", fibers[first].line, fibers[i].line);
    if (fibers[i].stop != Stop::kEnd && fibers[i].line != fibers[first].line)
      fail("threads wait at different lines", fibers[first].line, fibers[i].line);
  }
}

inline void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber = Fiber{};
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + static_cast<std::size_t>(i) * kStackBytes;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_body, 0);
  }
  do {
    for (int w = 0; w < threads / 32; ++w) {
      const int first = (backwards ? threads / 32 - 1 - w : w) * 32;
      do {
        for (int i = 0; i < 32; ++i) run(first + (backwards ? 31 - i : i));
        expect_alike(first, 32);
      } while (fibers[first].stop == Stop::kWarp);
    }
    expect_alike(0, threads);
    any_vote = 0;
    for (int i = 0; i < threads; ++i) any_vote |= fibers[i].vote;
  } while (fibers[0].stop != Stop::kEnd);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, Arguments... arguments) {
  if (threads % 32 != 0 || grid.x == 0 || grid.y == 0 || grid.y > 65535)
    fail("no such launch", threads, static_cast<int>(grid.x));
  if (shared_bytes > allowed_shared_bytes || shared_bytes % 128 != 0)
    fail("shared memory that was not asked for", shared_bytes, allowed_shared_bytes);
  if (shared_bytes > largest_shared_bytes) largest_shared_bytes = shared_bytes;
  if (stacks == nullptr) {
    stacks = static_cast<unsigned char*>(
        mmap(nullptr, 1024 * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  const std::size_t pages = (shared_bytes + kPage - 1) / kPage * kPage;
  auto* area =
      static_cast<unsigned char*>(mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(area + kPage, pages, PROT_READ | PROT_WRITE);
  shared_start = area + kPage + pages - shared_bytes;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  const std::function<void()> call = [&] { kernel(arguments...); };
  body = &call;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = backwards ? dim3(grid.x - 1 - x, grid.y - 1 - y) : dim3(x, y);
      std::memset(area + kPage, 0xff, pages);
      run_block(threads);
    }
  }
  munmap(area, pages + 2 * kPage);
  allowed_shared_bytes = 48 * 1024;
}

// Every lane hands in a value and gets that of another one.
template <class T>
T exchange(T value, int from, int line) {
  static_assert(sizeof(T) <= 8);
  const int warp = current / 32, lane = current % 32;
  const unsigned turn = fibers[current].exchanges++ % 2;
  std::memcpy(&slots[warp][turn][lane], &value, sizeof(T));
  stop_at(Stop::kWarp, line);
  std::memcpy(&value, &slots[warp][turn][from], sizeof(T));
  return value;
}

inline int vote(int mine, int line) {
  fibers[current].vote = mine;
  stop_at(Stop::kBlock, line);
  fibers[current].vote = 0;
  return any_vote;
}

}  // namespace emulated
