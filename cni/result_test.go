package cni

import (
	"testing"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/netif"
)

func TestResultFollowsThePreviousPlugins(t *testing.T) {
	c, err := parseConf([]byte(with(`"dns":{"domain":"example.com"},
		"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"x"}],"ips":[{"address":"198.51.100.1/24","interface":0}]}`)), strict)
	if err != nil {
		t.Fatal(err)
	}
	s, err := netif.SpecOfReply("eth0", &apiv1.AddPodReply{
		Ips: []string{"192.0.2.7/32", "2001:db8::7/128"}, Gateways: []string{"169.254.1.1", "fe80::1"},
		Mac: "02:00:00:00:00:07", GatewayMac: "02:76:73:77:00:01", MtuBytes: 1400, Queues: 2,
	})
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
