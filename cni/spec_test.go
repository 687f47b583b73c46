package cni

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	apiv1 "vswitch/control/api/v1"
)

func goodReply() *apiv1.AddPodReply {
	return &apiv1.AddPodReply{
		Ips:        []string{"192.0.2.7/32", "2001:db8::7/128"},
		Gateways:   []string{"169.254.1.1", "fe80::1"},
		Mac:        "02:00:00:00:00:07",
		GatewayMac: "02:76:73:77:00:01",
		MtuBytes:   1400,
		Queues:     2,
	}
}

func TestSpecPairsAddressesWithGateways(t *testing.T) {
	s, err := specOfReply("eth0", goodReply())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range s.addrs {
		got = append(got, a.addr.String()+" via "+a.gateway.String())
	}
	if g := strings.Join(got, ", "); g != "192.0.2.7 via 169.254.1.1, 2001:db8::7 via fe80::1" {
		t.Errorf("got %s", g)
	}
	if s.name != "eth0" || s.mtuBytes != 1400 || s.queues != 2 || s.mac.String() != "02:00:00:00:00:07" {
		t.Errorf("got %+v", s)
	}
}

func TestSpecRefusesAnAnswerThatMakesNoSense(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*apiv1.AddPodReply)
		says   string
	}{
		{"no address", func(r *apiv1.AddPodReply) { r.Ips = nil }, "ips"},
		{"a subnet", func(r *apiv1.AddPodReply) { r.Ips[0] = "192.0.2.7/24" }, "192.0.2.7/24"},
		{"an address without a gateway", func(r *apiv1.AddPodReply) { r.Gateways = r.Gateways[:1] }, "2001:db8::7"},
		{"no address at all", func(r *apiv1.AddPodReply) { r.Ips[0] = "pod" }, "pod"},
		{"a gateway with a prefix", func(r *apiv1.AddPodReply) { r.Gateways[0] = "169.254.1.1/32" }, "gateways"},
		{"no MAC", func(r *apiv1.AddPodReply) { r.Mac = "" }, "mac"},
		{"no gateway MAC", func(r *apiv1.AddPodReply) { r.GatewayMac = "" }, "gateway_mac"},
		{"no queue", func(r *apiv1.AddPodReply) { r.Queues = 0 }, "queues"},
		{"too small an MTU for IPv6", func(r *apiv1.AddPodReply) { r.MtuBytes = 1279 }, "1280"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := proto.CloneOf(goodReply())
			tt.change(r)
			if _, err := specOfReply("eth0", r); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want it to say %q", err, tt.says)
			}
		})
	}
}

func TestResultFollowsThePreviousPlugins(t *testing.T) {
	c, err := parseConf([]byte(with(`"dns":{"domain":"example.com"},
		"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"x"}],"ips":[{"address":"198.51.100.1/24","interface":0}]}`)), strict)
	if err != nil {
		t.Fatal(err)
	}
	s, err := specOfReply("eth0", goodReply())
	if err != nil {
		t.Fatal(err)
	}
	r := resultOf(c, "/ns", s)
	if len(r.Interfaces) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != "/ns" || r.Interfaces[1].Mtu != 1400 {
		t.Errorf("interfaces %v", r.Interfaces)
	}
	if len(r.IPs) != 3 || *r.IPs[1].Interface != 1 || r.IPs[2].Address.String() != "2001:db8::7/128" || r.IPs[2].Gateway.String() != "fe80::1" {
		t.Errorf("ips %v", r.IPs)
	}
	if len(r.Routes) != 4 || r.DNS.Domain != "example.com" {
		t.Errorf("routes %v, dns %v", r.Routes, r.DNS)
	}
}
