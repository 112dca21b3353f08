// Loaded before the C library, it gives posix_memalign, from which torch has the memory of CPU tensors, memory beside a page
// that nobody may touch: a kernel that leaves a tensor there stops the process. What was freed may not be touched either.
// The page follows the tensor; with GUARD_PAGES=before it precedes it.

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { kPage = 4096, kAlignment = 16 };  // vectors of 16 bytes need it, and nothing needs more
static const size_t kRegion = (size_t)1 << 38;  // addresses only
static const unsigned char kUnused = 0xff;

// In a page of its own; an untouchable one follows, then the pages whose first has the tensor's start, then another untouchable.
typedef struct {
  char* tensor;
  size_t bytes;
} Header;

static char* region;
static size_t taken;

extern void __libc_free(void*);

__attribute__((constructor)) static void reserve(void) {
  region = mmap(NULL, kRegion, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) abort();
}

static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

int posix_memalign(void** result, size_t alignment, size_t bytes) {
  if (alignment > kPage) return EINVAL;
  if (bytes == 0) bytes = 1;
  const size_t pages = rounded(bytes, kPage), all = pages + 3 * kPage;
  const size_t start = __atomic_fetch_add(&taken, all, __ATOMIC_RELAXED);
  if (start + all > kRegion) return ENOMEM;
  char *const header = region + start, *const memory = header + 2 * kPage;
  if (mprotect(header, kPage, PROT_READ | PROT_WRITE) || mprotect(memory, pages, PROT_READ | PROT_WRITE)) return ENOMEM;
  memset(memory, kUnused, pages);
  const char* edge = getenv("GUARD_PAGES");
  char* const tensor = memory + (edge && strcmp(edge, "before") == 0 ? 0 : pages - rounded(bytes, kAlignment));
  *(Header*)header = (Header){tensor, bytes};
  *result = tensor;
  return 0;
}

void free(void* pointer) {
  if (region == NULL || (char*)pointer < region || (char*)pointer >= region + kRegion) {
    __libc_free(pointer);
    return;
  }
  char* const memory = (char*)((uintptr_t)pointer / kPage * kPage);
  Header* const header = (Header*)(memory - 2 * kPage);
  const size_t pages = rounded(header->bytes, kPage);
  for (char* byte = memory; byte < memory + pages; ++byte) {
    const int outside = byte < header->tensor || byte >= header->tensor + header->bytes;
    if (outside && *(unsigned char*)byte != kUnused) {
      fprintf(stderr, "memory beside a tensor of %zu bytes was written to\n", header->bytes);
      abort();
    }
  }
  madvise(header, pages + 2 * kPage, MADV_DONTNEED);
  mprotect(header, pages + 2 * kPage, PROT_NONE);
}
