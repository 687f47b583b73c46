package cni

import (
	"fmt"
	"testing"

	"vswitch/control/api"
	"vswitch/internal/netif"
)

func TestResultFollowsThePreviousPlugins(t *testing.T) {
	c, err := parseConf([]byte(with(`"dns":{"domain":"example.com"},
		"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"x"}],"ips":[{"address":"198.51.100.1/24","interface":0}]}`)), strict)
	if err != nil {
		t.Fatal(err)
	}
	s, err := netif.SpecOfReply("eth0", &api.AddPodReply{
		IPs: []string{"192.0.2.7/32", "2001:db8::7/128"}, Gateways: []string{"169.254.1.1", "fe80::1"},
		MAC: "02:00:00:00:00:07", GatewayMAC: "02:76:73:77:00:01", MTUBytes: 1400, Queues: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	r := resultOf(c, "/ns", s, api.Resolver{Nameservers: []string{"192.0.2.53"}})
	if len(r.Interfaces) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != "/ns" || r.Interfaces[1].Mtu != 1400 {
		t.Errorf("interfaces %v", r.Interfaces)
	}
	if len(r.IPs) != 3 || *r.IPs[1].Interface != 1 || r.IPs[2].Address.String() != "2001:db8::7/128" || r.IPs[2].Gateway.String() != "fe80::1" {
		t.Errorf("ips %v", r.IPs)
	}
	if len(r.Routes) != 4 || r.DNS.Domain != "example.com" || len(r.DNS.Nameservers) != 0 {
		t.Errorf("routes %v, dns %v", r.Routes, r.DNS)
	}
}

func TestWhoSaysHowThePodFindsNames(t *testing.T) {
	own := api.Resolver{
		Nameservers: []string{"10.96.0.10"}, Domain: "default.svc.cluster.local",
		Search: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"},
	}
	const prev = `"prevResult":{"cniVersion":"1.0.0","dns":{"nameservers":["192.0.2.1"]}}`
	for _, c := range []struct {
		name, keys string
		own        api.Resolver
		want       string
	}{
		{"nobody else: the daemon", `"offload":"auto"`, own, "[10.96.0.10] default.svc.cluster.local [default.svc.cluster.local svc.cluster.local cluster.local] [ndots:5]"},
		{"nobody at all", `"offload":"auto"`, api.Resolver{}, "[]  [] []"},
		{"the configuration before the daemon", `"dns":{"nameservers":["192.0.2.2"]}`, own, "[192.0.2.2]  [] []"},
		{"a configuration that wants none", `"dns":{}`, own, "[]  [] []"},
		{"an earlier plugin before all", `"dns":{"nameservers":["192.0.2.2"]},` + prev, own, "[192.0.2.1]  [] []"},
		{"an earlier plugin before the daemon", prev, own, "[192.0.2.1]  [] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf, err := parseConf([]byte(with(c.keys)), strict)
			if err != nil {
				t.Fatal(err)
			}
			d := resultOf(conf, "/ns", &netif.Spec{}, c.own).DNS
			if got := fmt.Sprint(d.Nameservers, " ", d.Domain, " ", d.Search, " ", d.Options); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
