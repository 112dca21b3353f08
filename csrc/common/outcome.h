// What is known of a row of logits when its loss has been computed, on any device.
#pragma once

namespace tfkd_fast {

template <typename T>
struct Outcome {
  T loss = 0;
  // Of the softmax at temperature 1; only with statistics.
  bool correct = false;
  T true_probability = 0, entropy = 0;
};

}  // namespace tfkd_fast
