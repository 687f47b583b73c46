package fib

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePageBytes = 2 << 20 // of amd64, and of arm64 with pages of 4 KiB

// hugeSlice makes a slice of n zero elements without pointers and asks the
// kernel to back a large one with huge pages: a lookup touches one place at random, and
// on small pages often waits for a page walk besides. The garbage collector owns
// the memory as any other.
func hugeSlice[T any](n int) []T {
	s := make([]T, n)
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), n*int(unsafe.Sizeof(s[0])))
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(bytes)))) & (hugePageBytes - 1)
	if whole := (len(bytes) - skip) &^ (hugePageBytes - 1); whole > 0 {
		// Advice only: a kernel without huge pages says EINVAL.
		_ = unix.Madvise(bytes[skip:skip+whole], unix.MADV_HUGEPAGE)
	}
	return s
}
