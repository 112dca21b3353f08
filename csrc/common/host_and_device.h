// TFKD_HOST_AND_DEVICE: a small function that both the processor and the device call, and nobody needs to link.
#pragma once

#ifdef __CUDACC__
#define TFKD_HOST_AND_DEVICE __host__ __device__ __forceinline__
#else
#define TFKD_HOST_AND_DEVICE inline
#endif
