// Runs a block of CUDA threads on the processor: a fiber a thread, one after the other, each until it waits for others.
// What CUDA leaves undefined is an error here: barriers and warp collectives that not all threads reach together,
// memory beyond what was asked for, misaligned vectors, overflowing indices.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <random>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_host {

using Where = std::source_location;

// A stack that runs `entry` when it is first switched to, and goes on where it left off after that. `entry` must not
// return. The default is the stack of whoever calls.
class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;

  void start(char* stack, void (*entry)());
  static void change(Fiber& from, Fiber& to);

 private:
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

#ifdef __x86_64__
// cuda_on_host_change(save, restore): keeps on the stack what a called function must preserve, then changes the stack.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_host_change(void** save, void* restore);
asm(R"(
.text
.globl cuda_on_host_change
.hidden cuda_on_host_change
.type cuda_on_host_change, @function
cuda_on_host_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_host_change, .-cuda_on_host_change
)");
#endif

inline void Fiber::start(char* stack, void (*entry)()) {
#ifdef __x86_64__
  // Six registers, the address to return to, and what `entry` takes for its own: the stack is then aligned as after a
  // call.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(entry);
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

inline void Fiber::change(Fiber& from, Fiber& to) {
#ifdef __x86_64__
  cuda_on_host_change(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
}

// In which order the threads of a block run, and the blocks of a grid: code without a race does not notice. The
// environment variable CUDA_ON_HOST_ORDER says ascending (so without it), descending, or a number, the seed of a random
// order.
class Order {
 public:
  Order() {
    const char* name = std::getenv("CUDA_ON_HOST_ORDER");
    descending_ = name && std::strcmp(name, "descending") == 0;
    random_ = name && !descending_ && std::strcmp(name, "ascending") != 0;
    if (random_) generator_.seed(std::stoull(name));
  }

  std::vector<int64_t> of(int64_t count) {
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = descending_ ? count - 1 - i : i;
    if (random_) std::shuffle(order.begin(), order.end(), generator_);
    return order;
  }

 private:
  bool descending_, random_;
  std::mt19937_64 generator_;
};

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Thread {
  Fiber fiber;
  uint3 index;
  State state = State::kReady;
  Where where;  // it waits

  // The warp collective that it waits in.
  const char* collective = nullptr;
  unsigned mask = 0;
  int source = 0;      // the lane whose value it wants; -1: the ballot
  uint64_t value = 0;  // given, then got
};

class Block {
 public:
  // Runs the block at `index`; the grid's size and the block's are set.
  void run(const std::function<void()>& kernel, uint3 index, Order& order) {
    const int64_t count = int64_t{1} * blockDim.x * blockDim.y * blockDim.z;
    blockIdx = index;
    kernel_ = &kernel;
    threads_.assign(count, {});
    done_ = at_barrier_ = 0;
    error_ = nullptr;
    for (int64_t i = 0; i < count; ++i) {
      const auto t = static_cast<unsigned>(i);
      threads_[i].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
      threads_[i].fiber.start(stack(i), [] { current_block->thread(); });
    }
    current_block = this;
    while (done_ < count && !error_) {
      bool progress = false;
      for (const int64_t i : order.of(count)) {
        if (threads_[i].state != State::kReady || error_) continue;
        progress = true;
        current_ = &threads_[i];
        threadIdx = current_->index;
        Fiber::change(scheduler_, current_->fiber);
      }
      if (!progress) note(std::runtime_error(deadlock()));
    }
    current_block = nullptr;
    if (error_) std::rethrow_exception(error_);
  }

  // Called by a thread.

  void barrier(Where where) {
    current_->where = where;
    for (const Thread& other : threads_) {
      if (other.state == State::kAtBarrier && !same(other.where, where)) {
        fail(std::runtime_error(name(*current_) + " waits at __syncthreads " + at(where) + " while " + doing(other)));
      }
    }
    if (++at_barrier_ < static_cast<int64_t>(threads_.size())) return wait(State::kAtBarrier);
    at_barrier_ = 0;
    for (Thread& thread : threads_) thread.state = State::kReady;
  }

  // What lane `source` gave as `value`, or with source -1 the ballot of the values.
  uint64_t collective(const char* operation, unsigned mask, int source, uint64_t value, Where where) {
    Thread& self = *current_;
    self.where = where, self.collective = operation, self.mask = mask, self.source = source, self.value = value;
    if (!(mask >> lane() & 1)) fail(std::runtime_error(name(self) + " is not in its own mask, " + at(where)));
    if (source >= 0 && !(mask >> source & 1)) {
      fail(std::runtime_error(name(self) + " reads lane " + std::to_string(source) +
                              ", which its mask does not name, " + at(where)));
    }
    self.state = State::kInCollective;
    for (int other = 0; other < 32; ++other) {
      if ((mask >> other & 1) && !meets(self, other)) {
        wait(State::kInCollective);
        return self.value;
      }
    }
    uint64_t given[32], ballot = 0;
    for (int other = 0; other < 32; ++other) {
      if (!(mask >> other & 1)) continue;
      given[other] = lane_of_warp(other)->value;
      ballot |= uint64_t{given[other] != 0} << other;
    }
    for (int other = 0; other < 32; ++other) {
      if (!(mask >> other & 1)) continue;
      Thread& thread = *lane_of_warp(other);
      thread.value = thread.source < 0 ? ballot : given[thread.source];
      thread.state = State::kReady;
    }
    return self.value;
  }

  int lane() const { return static_cast<int>((current_ - threads_.data()) % 32); }

  // Gives the whole grid up; whoever launched it gets the exception.
  template <typename Exception>
  [[noreturn]] void fail(const Exception& exception) {
    note(exception);
    for (;;) wait(State::kDone);
  }

  std::string here() const { return name(*current_); }

  inline static Block* current_block = nullptr;

 private:
  void thread() {
    (*kernel_)();
    ++done_;
    for (;;) wait(State::kDone);
  }

  void wait(State state) {
    Thread& self = *current_;
    self.state = state;
    Fiber::change(self.fiber, scheduler_);
  }

  template <typename Exception>
  void note(const Exception& exception) {
    if (!error_) error_ = std::make_exception_ptr(exception);
  }

  Thread* lane_of_warp(int lane) {
    const size_t thread = (current_ - threads_.data()) / 32 * 32 + lane;
    return thread < threads_.size() ? &threads_[thread] : nullptr;
  }

  bool meets(const Thread& self, int lane) {
    const Thread* other = lane_of_warp(lane);
    return other && other->state == State::kInCollective && other->mask == self.mask &&
           std::strcmp(other->collective, self.collective) == 0 && same(other->where, self.where);
  }

  static bool same(Where a, Where b) { return a.line() == b.line() && !std::strcmp(a.file_name(), b.file_name()); }

  static std::string at(Where where) {
    return std::string("(") + where.file_name() + ":" + std::to_string(where.line()) + ")";
  }

  static std::string name(const Thread& thread) {
    std::ostringstream text;
    const auto put = [&](uint3 i) { text << '(' << i.x << ',' << i.y << ',' << i.z << ')'; };
    text << "thread ", put(thread.index), text << " of block ", put(blockIdx);
    return text.str();
  }

  static std::string doing(const Thread& thread) {
    switch (thread.state) {
      case State::kAtBarrier:
        return name(thread) + " waits at __syncthreads " + at(thread.where);
      case State::kInCollective: {
        std::ostringstream mask;
        mask << std::hex << thread.mask;
        return name(thread) + " waits in " + thread.collective + " with mask 0x" + mask.str() + " " + at(thread.where);
      }
      case State::kDone:
        return name(thread) + " has returned";
      default:
        return name(thread) + " runs";
    }
  }

  std::string deadlock() {
    for (const Thread& waiting : threads_) {
      if (waiting.state == State::kInCollective) {
        current_ = const_cast<Thread*>(&waiting);
        for (int lane = 0; lane < 32; ++lane) {
          if (!(waiting.mask >> lane & 1) || meets(waiting, lane)) continue;
          const Thread* other = lane_of_warp(lane);
          return doing(waiting) + ", but " +
                 (other ? doing(*other) : "the block has no lane " + std::to_string(lane) + " there");
        }
      }
    }
    std::string text;
    for (const State state : {State::kAtBarrier, State::kDone}) {
      const auto found = std::find_if(threads_.begin(), threads_.end(), [&](auto& t) { return t.state == state; });
      if (found != threads_.end()) text += (text.empty() ? "" : ", but ") + doing(*found);
    }
    return text;
  }

  // Each stack has a page below it that nobody may touch.
  static char* stack(int64_t i) {
    static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), stride = page + Fiber::kStackBytes;
    static char* const stacks = [] {
      constexpr int kMostThreads = 1024;
      void* memory = mmap(nullptr, kMostThreads * stride, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      for (int k = 0; k < kMostThreads; ++k) mprotect(static_cast<char*>(memory) + k * stride, page, PROT_NONE);
      return static_cast<char*>(memory);
    }();
    return stacks + i * stride + page;
  }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  Thread* current_ = nullptr;
  Fiber scheduler_;
  int64_t done_ = 0, at_barrier_ = 0;
  std::exception_ptr error_;
};

// A device assertion; outside of a kernel an exception like any other.
[[noreturn]] inline void assertion_failed(const char* condition, const char* file, int line) {
  Block* block = Block::current_block;
  std::ostringstream text;
  text << (block ? block->here() : "host") << ": assertion failed: " << condition << " (" << file << ":" << line << ")";
  if (block) block->fail(std::out_of_range(text.str()));
  throw std::out_of_range(text.str());
}

// The undefined behaviour that g++ -fsanitize finds: what each of its reports begins with.
struct Report {
  const char* file;
  uint32_t line, column;
};

#define CUDA_ON_HOST_UNDEFINED(behaviour)                                                                          \
  extern "C" __attribute__((visibility("hidden"), used)) inline void cuda_on_host_##behaviour(Report* report) asm( \
      "__ubsan_handle_" #behaviour);                                                                               \
  void cuda_on_host_##behaviour(Report* report) {                                                                  \
    Block* block = Block::current_block;                                                                           \
    if (!block) return; /* code of the host */                                                                     \
    std::ostringstream text;                                                                                       \
    text << block->here() << ": " #behaviour " (" << report->file << ":" << report->line << ")";                   \
    block->fail(std::runtime_error(text.str()));                                                                   \
  }
CUDA_ON_HOST_UNDEFINED(type_mismatch_v1)  // misaligned, or a null pointer
CUDA_ON_HOST_UNDEFINED(out_of_bounds)
CUDA_ON_HOST_UNDEFINED(add_overflow)
CUDA_ON_HOST_UNDEFINED(sub_overflow)
CUDA_ON_HOST_UNDEFINED(mul_overflow)
CUDA_ON_HOST_UNDEFINED(negate_overflow)
CUDA_ON_HOST_UNDEFINED(divrem_overflow)
CUDA_ON_HOST_UNDEFINED(shift_out_of_bounds)
CUDA_ON_HOST_UNDEFINED(float_cast_overflow)
#undef CUDA_ON_HOST_UNDEFINED

}  // namespace cuda_on_host
