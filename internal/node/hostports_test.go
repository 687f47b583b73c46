package node

import (
	"errors"
	"net/netip"
	"testing"

	"vswitch/control"
	"vswitch/internal/attach"
	"vswitch/vswitch/gateway"
)

// portTable is a gateway that remembers, and refuses one port.
type portTable struct {
	open   map[gateway.HostPortKey]gateway.HostPort
	refuse uint16
}

func (t *portTable) PutHostPort(p gateway.HostPort) error {
	if p.Port == t.refuse {
		return errors.New("taken")
	}
	t.open[p.HostPortKey] = p
	return nil
}
func (t *portTable) DeleteHostPort(k gateway.HostPortKey) { delete(t.open, k) }

func TestHostPortsReachTheGatewayAllOrNone(t *testing.T) {
	a := &attach.Attachment{
		Pod:   attach.Pod{Namespace: "default", Name: "web"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")},
		Ports: []attach.PortMapping{
			{HostPort: 8080, PodPort: 80, Protocol: control.TCP},
			{HostPort: 53, PodPort: 5353, Protocol: control.UDP, HostIP: netip.MustParseAddr("192.0.2.1")},
		},
	}
	h := &hostPorts{identity: func(*attach.Attachment) uint64 { return 7 }}
	if err := h.Open(a); err == nil {
		t.Error("opened without a gateway")
	}
	h.Close(a) // nothing to do
	table := &portTable{open: map[gateway.HostPortKey]gateway.HostPort{}}
	h.serve(table)
	if err := h.Open(a); err != nil {
		t.Fatal(err)
	}
	got := table.open[gateway.HostPortKey{Pod: "default/web", HostIP: netip.MustParseAddr("192.0.2.1"), Port: 53, Protocol: 17}]
	if len(table.open) != 2 || len(got.Endpoints) != 2 || got.Endpoints[1].Addr != a.Addrs[1] || got.Endpoints[1].Port != 5353 || got.Endpoints[1].ID != 7 || !got.Endpoints[1].OnNode {
		t.Errorf("open: %+v", table.open)
	}
	h.Close(a)
	if len(table.open) != 0 {
		t.Errorf("open after Close: %+v", table.open)
	}
	table.refuse = 53
	if err := h.Open(a); err == nil || len(table.open) != 0 {
		t.Errorf("one of two refused: %v, open %+v; want an error and none", err, table.open)
	}
}
