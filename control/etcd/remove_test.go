package etcd

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLeaseWatch looks at leases of ten seconds as a store shows them: in whole
// seconds, rounded down, and with nothing left for a while before they are gone.
func TestLeaseWatch(t *testing.T) {
	type look struct {
		after  time.Duration // since the first
		lease  clientv3.LeaseID
		left   time.Duration // 0: the store shows none
		answer bool
	}
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		looks []look
	}{
		{"one that runs out", []look{
			{0, 1, 9950 * ms, false}, {4900 * ms, 1, 5050 * ms, false}, {8900 * ms, 1, 1050 * ms, false}, {10400 * ms, 1, 0, false},
		}},
		{"one that runs out while the store is slow to answer", []look{
			{0, 1, 9010 * ms, false}, {900 * ms, 1, 9000 * ms, false}, {9 * time.Second, 1, 0, false},
		}},
		{"one that is renewed after a third of its life", []look{
			{0, 1, 9999 * ms, false}, {3400 * ms, 1, 9900 * ms, true},
		}},
		{"one that is renewed when it was nearly over", []look{
			{0, 1, 500 * ms, false}, {600 * ms, 1, 9900 * ms, false}, {4000 * ms, 1, 9900 * ms, true},
		}},
		{"one that another follows", []look{{0, 1, 5000 * ms, false}, {1000 * ms, 2, 9900 * ms, true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w leaseWatch
			began := time.Now()
			for i, k := range tt.looks {
				var l leaseState
				if left := k.left.Truncate(time.Second); left > 0 {
					l = leaseState{k.lease, began.Add(k.after + left)}
				}
				if got := w.renewed(l); got != k.answer {
					t.Errorf("look %d: renewed is %v, want %v", i+1, got, k.answer)
				}
			}
		})
	}
}
