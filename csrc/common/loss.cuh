// A row of logits on the device: its loss, the gradient and the training statistics, for a target row that the
// operator supplies. Definitions: tfkd_fast/ops/losses.py.
//
// Up to 1,024 classes a row lives in the registers of 4 to 32 lanes (`rows_in_registers`): each logit is read once and
// each gradient written once, which is all that must move beside the targets. Above that, and for float64, a block
// visits a row (`rows_in_blocks`): once for the sums, once for the gradient; the second visit reads shared memory, or
// the L2 cache when the row is too long for it. A block serves one candidate, so its sum over the batch is either
// final or one of few partial sums, which `add_partial_sums` adds in a fixed order.
#pragma once

// Exponents and logarithms.
#include "loss/math.cuh"

// What a kernel is told, and the sums over the batch.
#include "loss/arguments.cuh"

// Rows of up to 1,024 classes.
#include "loss/registers.cuh"

// Longer rows.
#include "loss/blocks.cuh"

// The host's side.
#include "loss/launch.cuh"
