//go:build !amd64

package wire

// useVectors is for tests, which are the same everywhere.
var useVectors = false

// sumBlocks sums whole blocks in little-endian word order, unfolded.
func sumBlocks(b []byte) uint64 { return sumWords(b) }
