package netif

import (
	"strings"
	"testing"

	"vswitch/control/api"
)

func goodReply() *api.AddPodReply {
	return &api.AddPodReply{
		IPs:        []string{"192.0.2.7/32", "2001:db8::7/128"},
		Gateways:   []string{"169.254.1.1", "fe80::1"},
		MAC:        "02:00:00:00:00:07",
		GatewayMAC: "02:76:73:77:00:01",
		MTUBytes:   1400,
		Queues:     2,
	}
}

func TestSpecPairsAddressesWithGateways(t *testing.T) {
	s, err := SpecOfReply("eth0", goodReply())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range s.Addrs {
		got = append(got, a.Addr.String()+" via "+a.Gateway.String())
	}
	if g := strings.Join(got, ", "); g != "192.0.2.7 via 169.254.1.1, 2001:db8::7 via fe80::1" {
		t.Errorf("got %s", g)
	}
	if s.Name != "eth0" || s.MTUBytes != 1400 || s.Queues != 2 || s.MAC.String() != "02:00:00:00:00:07" {
		t.Errorf("got %+v", s)
	}
}

func TestSpecRefusesAnAnswerThatMakesNoSense(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*api.AddPodReply)
		says   string
	}{
		{"no address", func(r *api.AddPodReply) { r.IPs = nil }, "ips"},
		{"a subnet", func(r *api.AddPodReply) { r.IPs[0] = "192.0.2.7/24" }, "192.0.2.7/24"},
		{"an address without a gateway", func(r *api.AddPodReply) { r.Gateways = r.Gateways[:1] }, "2001:db8::7"},
		{"no address at all", func(r *api.AddPodReply) { r.IPs[0] = "pod" }, "pod"},
		{"a gateway with a prefix", func(r *api.AddPodReply) { r.Gateways[0] = "169.254.1.1/32" }, "gateways"},
		{"no MAC", func(r *api.AddPodReply) { r.MAC = "" }, "mac"},
		{"no gateway MAC", func(r *api.AddPodReply) { r.GatewayMAC = "" }, "gateway_mac"},
		{"no queue", func(r *api.AddPodReply) { r.Queues = 0 }, "queues"},
		{"too small an MTU for IPv6", func(r *api.AddPodReply) { r.MTUBytes = 1279 }, "1280"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := goodReply()
			tt.change(r)
			if _, err := SpecOfReply("eth0", r); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want it to say %q", err, tt.says)
			}
		})
	}
}
