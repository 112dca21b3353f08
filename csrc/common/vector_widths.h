// The vector widths that a function is compiled for.
#pragma once

// TFKD_FOR_EVERY_VECTOR_WIDTH: one copy of a function for each vector width, the widest that the processor has taken at
// load time. What such a function calls must be inlined into it (TFKD_INLINE), lambdas too: a function that is called
// has the width of no copy. Such a template belongs into an unnamed namespace, where each file has its own choice.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define TFKD_HAS_VECTOR_WIDTHS 1
#define TFKD_FOR_EVERY_VECTOR_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TFKD_HAS_VECTOR_WIDTHS 0
#define TFKD_FOR_EVERY_VECTOR_WIDTH
#endif
#define TFKD_INLINE inline __attribute__((always_inline))
