package node

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"vswitch/vswitch"
	"vswitch/vswitch/drop"
)

// countedPorts is the switch as the attachments and the command line see it. The
// switch comes later than they do: until then there are no ports. Drops of ports
// that are removed are kept: what was lost stays counted when who lost it has gone.
type countedPorts struct {
	sw atomic.Pointer[vswitch.Switch]

	mu   sync.Mutex
	gone map[drop.Reason]uint64 // guarded by mu
}

func newCountedPorts() *countedPorts { return &countedPorts{gone: map[drop.Reason]uint64{}} }

func (c *countedPorts) serve(sw *vswitch.Switch) { c.sw.Store(sw) }

// Stats lists the ports there are.
func (c *countedPorts) Stats() []vswitch.PortStats {
	if sw := c.sw.Load(); sw != nil {
		return sw.Stats()
	}
	return nil
}

// AddPort adds a port to the switch. It takes the queues, also when it fails.
func (c *countedPorts) AddPort(p vswitch.PortConfig) (uint32, error) {
	sw := c.sw.Load()
	if sw == nil {
		err := errors.New("the switch is not up yet")
		for _, q := range p.Queues {
			err = errors.Join(err, q.Close())
		}
		return 0, err
	}
	return sw.AddPort(p)
}

// RemovePort removes a port of the switch and keeps its drops.
func (c *countedPorts) RemovePort(id uint32) error {
	sw := c.sw.Load()
	if sw == nil {
		return errors.New("the switch is not up yet")
	}
	c.mu.Lock()
	for _, p := range sw.Stats() {
		if p.ID == id {
			for reason, n := range p.Drops {
				c.gone[reason] += n
			}
		}
	}
	c.mu.Unlock()
	return sw.RemovePort(id)
}

// retired are the drops of ports that are gone.
func (c *countedPorts) retired() map[drop.Reason]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.gone)
}
