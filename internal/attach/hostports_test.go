package attach

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vswitch/control"
	"vswitch/tap"
)

// hostPorts keeps what is open.
type hostPorts struct {
	open map[string][]PortMapping // by port name
	err  error
}

func (h *hostPorts) Open(a *Attachment) error {
	if h.err == nil {
		h.open[a.Port] = a.Ports
	}
	return h.err
}
func (h *hostPorts) Close(a *Attachment) { delete(h.open, a.Port) }

var webPorts = []PortMapping{{HostPort: 8080, PodPort: 80, Protocol: control.TCP}}

// newBenchWithPorts is a manager that may give ports of the host.
func newBenchWithPorts(t *testing.T) (*bench, *hostPorts) {
	b, h := newBench(t), &hostPorts{open: map[string][]PortMapping{}}
	b.cfg.HostPorts = h
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	return b, h
}

func TestHostPortsGoWithTheAttachment(t *testing.T) {
	b, h := newBenchWithPorts(t)
	r := request("c1")
	r.Ports = webPorts
	a, err := b.Add(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.open) != 0 {
		t.Error("a pending pod has a port of the host open")
	}
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.open[a.Port], webPorts) {
		t.Errorf("open: %v, want %v", h.open, webPorts)
	}

	// The next daemon opens them again, once it has the queues.
	clear(h.open)
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	b.Restore()
	if a, err := b.Get(r.Key); err != nil || !slices.Equal(a.Ports, webPorts) {
		t.Errorf("after a restart: %v, %v", a.Ports, err)
	}
	if !slices.Equal(h.open[a.Port], webPorts) {
		t.Errorf("open after a restart: %v, want %v", h.open, webPorts)
	}
	if err := b.Delete(r.Key); err != nil {
		t.Fatal(err)
	}
	if len(h.open) != 0 {
		t.Errorf("open after the pod has gone: %v", h.open)
	}
}

func TestHostPortsRefused(t *testing.T) {
	b, h := newBenchWithPorts(t)
	first := request("c1")
	first.Ports = webPorts
	a, err := b.Add(first)
	if err != nil {
		t.Fatal(err)
	}
	second := request("c2")
	second.Ports = webPorts
	if _, err := b.Add(second); !errors.Is(err, ErrPortUsed) || !strings.Contains(err.Error(), "default/pod-c1") {
		t.Errorf("another pod's port: %v", err)
	}
	for _, p := range []PortMapping{
		{PodPort: 80, Protocol: control.TCP}, {HostPort: 80, Protocol: control.TCP},
		{HostPort: 80, PodPort: 80, Protocol: control.SCTP}, {HostPort: 80, PodPort: 80},
		{HostPort: 80, PodPort: 80, Protocol: control.TCP, HostIP: netip.MustParseAddr("ff02::1")},
	} {
		var invalid *InvalidError
		second.Ports = []PortMapping{p}
		if _, err := b.Add(second); !errors.As(err, &invalid) {
			t.Errorf("%+v: %v, want an InvalidError", p, err)
		}
	}
	// Where it can't be opened the pod is as if its queues had not come.
	h.err = errors.New("in use")
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); !errors.Is(err, h.err) {
		t.Errorf("attach: %v, want %v", err, h.err)
	}
	if len(b.ports.open) != 0 || len(b.routes) != 0 {
		t.Errorf("left: ports %v, routes %v", b.ports.open, b.routes)
	}

	none := newBench(t)
	var invalid *InvalidError
	if _, err := none.Add(first); !errors.As(err, &invalid) {
		t.Errorf("without host ports: %v, want an InvalidError", err)
	}
}
