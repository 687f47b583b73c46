package gateway

import (
	"sync/atomic"

	"vswitch/internal/share"
	"vswitch/internal/wire"
)

// The netstack joins fragments, and keeps a timer of some 200 bytes for up to a
// minute for each datagram that it joined while no other was being joined: the
// timer is set anew without the last one being stopped. So the datagrams of a
// minute are counted, and shared out between pods: half of them for one that asks
// alone, some 2,000 a second.
const (
	joinsPerMinute = 1 << 18 // 110 MB of timers at worst, two minutes' worth
	joinMinute     = 60 * ticksPerSec
)

type joins struct {
	minute atomic.Pointer[share.Pool[wire.Addr]]
	since  atomic.Uint32 // tick
}

func newJoins() *joins {
	j := new(joins)
	j.minute.Store(share.New[wire.Addr](joinsPerMinute))
	return j
}

// admit counts a first fragment; false: the pod has had its share of the minute.
func (j *joins) admit(pod *wire.Addr) bool { return j.minute.Load().Take(*pod, 1) }

// sweep begins another minute.
func (j *joins) sweep(tick uint32) {
	if tick-j.since.Load() >= joinMinute {
		j.since.Store(tick)
		j.minute.Store(share.New[wire.Addr](joinsPerMinute))
	}
}
