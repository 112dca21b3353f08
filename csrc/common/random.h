// Counter-based random numbers, alike on every device. The definition is tfkd_fast/randomness.py.
#pragma once

#include "host_and_device.h"

#include <cstdint>

namespace tfkd_fast {

// What the operators draw numbers for, of the list in tfkd_fast/randomness.py; a test compares the two.
enum class Purpose : uint32_t { kAugment = 2 };

struct Words {
  uint32_t at[4];
};

// Philox4x32-10.
TFKD_HOST_AND_DEVICE Words philox(Words counter, uint32_t key0, uint32_t key1) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.at[0], product1 = uint64_t{0xCD9E8D57} * counter.at[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.at[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.at[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9, key1 += 0xBB67AE85;
  }
  return counter;
}

// Four words for a sample; `draw` is (seed, epoch, stream).
TFKD_HOST_AND_DEVICE Words random_words(int64_t sample, Purpose purpose, const int64_t* draw) {
  const auto seed = static_cast<uint64_t>(draw[0]);
  const Words counter{{static_cast<uint32_t>(sample), static_cast<uint32_t>(draw[1]), static_cast<uint32_t>(purpose),
                       static_cast<uint32_t>(draw[2])}};
  return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Uniform on 0 .. bound - 1.
TFKD_HOST_AND_DEVICE uint32_t below(uint32_t word, uint32_t bound) {
  return static_cast<uint32_t>(uint64_t{word} * bound >> 32);
}

}  // namespace tfkd_fast
