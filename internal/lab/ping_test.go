package lab

import (
	"fmt"
	"strings"
	"testing"
)

func TestEveryAnswer(t *testing.T) {
	answers := func(seqs ...int) string {
		var b strings.Builder
		b.WriteString("PING 10.244.1.2 (10.244.1.2) 56(84) bytes of data.\n")
		for _, s := range seqs {
			fmt.Fprintf(&b, "64 bytes from 10.244.1.2: icmp_seq=%d ttl=62 time=0.1 ms\n", s)
		}
		return b.String()
	}
	for _, c := range []struct {
		name, out string
		good      bool
	}{
		{"all", answers(1, 2, 3), true},
		{"out of order", answers(2, 1, 3), true},
		{"one more", answers(1, 2, 3, 4), true},
		{"one lost", answers(1, 3, 4), false},
		{"the last lost", answers(1, 2), false},
		{"one twice", answers(1, 2, 2, 3), false},
		{"the last twice", answers(1, 2, 3, 3), false},
		{"errors alone", "From 10.244.1.1 icmp_seq=1 Destination Host Unreachable\n", false},
	} {
		if err := everyAnswer(c.out, 3); (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
