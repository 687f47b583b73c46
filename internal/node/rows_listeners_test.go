package node

import (
	"net/netip"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/control"
	"vswitch/internal/wire"
	"vswitch/vswitch/gateway"
)

func TestListenerRows(t *testing.T) {
	b := newBench(t)
	web := gateway.ServiceKey{Namespace: "default", Name: "web", PortName: "http"}
	b.table.listeners = []gateway.ListenerStatus{
		{Kind: gateway.NodePort, Owner: web.String(), Service: web, Protocol: wire.ProtoTCP, Addr: netip.MustParseAddrPort("192.0.2.1:30080"), OpenAt: 30080},
		{Kind: gateway.LoadBalancerIP, Owner: web.String(), Service: web, Protocol: wire.ProtoTCP, Addr: netip.MustParseAddrPort("192.0.2.1:80"), OpenAt: 10080},
		{Kind: gateway.NodePort, Owner: web.String(), Service: web, Protocol: wire.ProtoUDP, Addr: netip.MustParseAddrPort("[2001:db8::1]:30080"), Err: unix.EADDRINUSE},
		{Kind: gateway.HostPortAnywhere, Owner: "default/pod", Protocol: wire.ProtoTCP, Addr: netip.MustParseAddrPort("192.0.2.1:30080"),
			Err: &gateway.TakenError{Kind: gateway.NodePort, Owner: web.String()}},
	}
	want := []any{
		listenerRow{"192.0.2.1:30080", 30080, "TCP", "node port", "default/web:http", ""},
		listenerRow{"192.0.2.1:80", 10080, "TCP", "load balancer address", "default/web:http", ""},
		listenerRow{"[2001:db8::1]:30080", 0, "UDP", "node port", "default/web:http", "address already in use"},
		listenerRow{"192.0.2.1:30080", 0, "TCP", "host port", "default/pod", "taken by the node port of default/web:http"},
	}
	if got := (&view{dataplane: b.dataplane}).listeners(); !reflect.DeepEqual(got, want) {
		t.Errorf("rows %+v, want %+v", got, want)
	}
	moved := map[control.Key][]string{
		{Kind: control.KindService, Scope: "default", Name: "web"}: {"load balancer address 192.0.2.1:80/TCP: open at port 10080"},
	}
	if got := movedPorts(b.table.listeners); !reflect.DeepEqual(got, moved) {
		t.Errorf("moved %v, want %v", got, moved)
	}
	problems := map[control.Key][]string{
		{Kind: control.KindService, Scope: "default", Name: "web"}: {"node port [2001:db8::1]:30080/UDP: address already in use"},
	}
	if got := listenerProblems(b.table.listeners); !reflect.DeepEqual(got, problems) {
		t.Errorf("problems %v, want %v", got, problems)
	}
}
