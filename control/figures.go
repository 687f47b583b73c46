package control

// Figures are what a controller knows, in numbers.
type Figures struct {
	// Reachable: the source answers. It does not count before its first full list.
	Reachable bool
	Objects   map[Kind]int // the main kinds, each
	Problems  int          // things that objects ask for and that are not done
}

// Figures counts. It takes a moment for each service, none for pods.
func (c *Controller) Figures() Figures {
	synced := false
	select {
	case <-c.synced:
		synced = true
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.objects
	f := Figures{
		Reachable: synced && !o.away,
		Objects:   map[Kind]int{KindService: 0, KindNode: len(o.nodes), KindPod: len(o.pods), KindEndpointSlice: len(o.slices)},
	}
	for _, e := range o.entries {
		if e.record != nil {
			f.Objects[KindService]++
		}
	}
	f.Problems = len(o.Problems())
	return f
}
