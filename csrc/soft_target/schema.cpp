#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(tfkd_fast, library) {
  library.def(
      "soft_target_loss(Tensor logits, Tensor labels, Tensor targets, Tensor? temperature, Tensor? hard_weight, "
      "bool class_rows, str reduction) -> (Tensor loss, Tensor gradient)");
  library.def(
      "soft_target_loss_with_stats(Tensor logits, Tensor labels, Tensor targets, Tensor(a!)? similarity, "
      "Tensor? temperature, Tensor? hard_weight, bool class_rows, str reduction) "
      "-> (Tensor loss, Tensor gradient, Tensor correct, Tensor true_probability, Tensor entropy)");
}
