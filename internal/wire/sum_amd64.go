package wire

import "golang.org/x/sys/cpu"

// useVectors is changed by tests alone.
var useVectors = cpu.X86.HasAVX2

// sumBlocks sums whole blocks in little-endian word order, unfolded.
func sumBlocks(b []byte) uint64 {
	if !useVectors {
		return sumWords(b)
	}
	all, upper := sumVectors(&b[0], len(b))
	// all is the sum of 64-bit lanes without what overflowed them, upper that of their
	// upper halves. all less upper<<32 is then that of the lower halves, which overflowed
	// nothing: a frame has 2^13 lanes.
	return all - upper<<32 + upper
}

// sumVectors reads n bytes at b, at least one block and nothing but blocks. The processor has AVX2.
//
//go:noescape
func sumVectors(b *byte, n int) (all, upper uint64)
