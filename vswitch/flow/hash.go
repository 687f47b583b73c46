package flow

import "math/bits"

// hashKey is random, and lies in the mapping's header so that whoever maps the
// table again finds its entries.
type hashKey [8]uint64

// Hash maps a tuple to 64 bits that nobody without the key can aim: not at a
// slot, nor at a chunk, nor at another tuple.
//
// The first part is NH, from UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway,
// CRYPTO 1999, section 4): a sum of products of key-shifted words, in 128 bits. For any two
// tuples chosen without knowing the key, the results differ by any given value
// with probability at most 2^-64, which is proven, where mixers of the wyhash kind only
// look well mixed. The second part folds the 128 bits to 64 with two
// more words of key. Four multiplications, of which only the last waits for the
// others: 4 ns.
//
// It is for frames, not for authentication: whoever could measure one table's
// chains precisely enough might learn about its key.
func (t *Table) Hash(k *Key) uint64 {
	src0, src1, dst0, dst1, ports := k.words()
	key := &t.hashKey
	hi1, lo1 := bits.Mul64(src0+key[0], src1+key[1])
	hi2, lo2 := bits.Mul64(dst0+key[2], dst1+key[3])
	hi3, lo3 := bits.Mul64(ports+key[4], key[5])
	lo, c := bits.Add64(lo1, lo2, 0)
	hi, _ := bits.Add64(hi1, hi2, c)
	lo, c = bits.Add64(lo, lo3, 0)
	hi, _ = bits.Add64(hi, hi3, c)
	hi, lo = bits.Mul64(hi^key[6], lo^key[7])
	return hi ^ lo
}
