package gateway

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
)

func TestExposed(t *testing.T) {
	here, there := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.2.5")
	base := Service{
		ServiceKey: ServiceKey{Namespace: "default", Name: "web"}, Protocol: wire.ProtoTCP, Port: 80, NodePort: 30080,
		Endpoints: []Endpoint{
			{Addr: here, Port: 8080, ID: 1, Cluster: true, Local: true, OnNode: true},
			{Addr: there, Port: 8080, ID: 2, Cluster: true},
		},
	}
	for _, tt := range []struct {
		name   string
		change func(*Service)
		want   bool
	}{
		{"a node port", func(*Service) {}, true},
		{"a load balancer's address", func(s *Service) {
			s.NodePort, s.LoadBalancerIPs = 0, []netip.Addr{netip.MustParseAddr("198.51.100.1")}
		}, true},
		{"an external address", func(s *Service) {
			s.NodePort, s.ExternalIPs = 0, []netip.Addr{netip.MustParseAddr("198.51.100.1")}
		}, true},
		{"an endpoint that drains", func(s *Service) { s.Endpoints[0].Cluster, s.Endpoints[0].Local = false, false }, true},
		{"nothing for outside", func(s *Service) { s.NodePort = 0 }, false},
		{"the policy keeps clients on the node they came to", func(s *Service) { s.ExternalLocal = true }, false},
		{"an endpoint elsewhere", func(s *Service) { s.Endpoints = s.Endpoints[1:] }, false},
		{"another protocol", func(s *Service) { s.Protocol = wire.ProtoUDP }, false},
		{"another port of the pod", func(s *Service) { s.Endpoints[0].Port = 8081 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var g Gateway
			s := base.clone()
			tt.change(s)
			g.exposed.replace(nil, s)
			got := func() bool { return g.Exposed(new(wire.AddrFrom(here)), 8080, wire.ProtoTCP) }
			if got() != tt.want {
				t.Errorf("%v, want %v", got(), tt.want)
			}
			g.exposed.replace(s, s) // a change that keeps it never closes it
			if got() != tt.want {
				t.Errorf("put again: %v, want %v", got(), tt.want)
			}
			second := base.clone()
			second.Name = "also"
			g.exposed.replace(nil, second)
			g.exposed.replace(s, nil)
			if !got() {
				t.Error("closed with the first of two services that expose it")
			}
			g.exposed.replace(second, nil)
			if got() || len(g.exposed.ports) != 0 {
				t.Errorf("left over: %v", g.exposed.ports)
			}
		})
	}
}
