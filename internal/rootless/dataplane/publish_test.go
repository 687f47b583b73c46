package dataplane

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vswitch/internal/rootless/plan"
	"vswitch/internal/sockdiag"
	"vswitch/internal/wire"
	"vswitch/vswitch/gateway"
)

func TestParsePublish(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		values string
		want   Publish
	}{
		{"auto", Publish{Auto: true}},
		{"none", Publish{}},
		{"8080", Publish{Ports: []Port{{Port: 8080, Inside: 8080}}}},
		{"8080:80", Publish{Ports: []Port{{Port: 8080, Inside: 80}}}},
		{"8080:80/udp", Publish{Ports: []Port{{Port: 8080, Inside: 80, UDP: true}}}},
		{"192.0.2.1:8080:80/tcp", Publish{Ports: []Port{{Host: addr("192.0.2.1"), Port: 8080, Inside: 80}}}},
		{"192.0.2.1:8080", Publish{Ports: []Port{{Host: addr("192.0.2.1"), Port: 8080, Inside: 8080}}}},
		{"[2001:db8::1]:8080:80", Publish{Ports: []Port{{Host: addr("2001:db8::1"), Port: 8080, Inside: 80}}}},
		{"8000-8001:80-81", Publish{Ports: []Port{{Port: 8000, Inside: 80}, {Port: 8001, Inside: 81}}}},
		{"auto 53/udp", Publish{Auto: true, Ports: []Port{{Port: 53, Inside: 53, UDP: true}}}},
	} {
		got, err := ParsePublish(strings.Fields(tt.values))
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v; want %+v", tt.values, got, err, tt.want)
		}
		text, err := json.Marshal(got)
		var back Publish
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if err != nil || !reflect.DeepEqual(back, got) {
			t.Errorf("%s: as JSON %s, which is read as %+v, %v", tt.values, text, back, err)
		}
	}
	for _, bad := range []string{"", "0", "65536", "x", "80/icmp", "80:", "81-80", "80-81:80-90", "none auto", "1.2.3:80", "[::1]80", "[192.0.2.1]:80:80"} {
		values := strings.Fields(bad)
		if bad == "" {
			values = []string{""}
		}
		if got, err := ParsePublish(values); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

// ports stands for the gateway.
type ports map[string][]gateway.Endpoint

func (p ports) PutHostPort(h gateway.HostPort) error {
	p[describe(h.HostPortKey)] = h.Endpoints
	return nil
}
func (p ports) DeleteHostPort(k gateway.HostPortKey) { delete(p, describe(k)) }

func (p ports) String() string {
	var all []string
	for at, to := range p {
		for _, e := range to {
			all = append(all, fmt.Sprintf("%s>%v", at, netip.AddrPortFrom(e.Addr, e.Port)))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestPortsAreThoseOfWhatListens(t *testing.T) {
	nets, err := plan.NetsOf([]netip.Prefix{plan.DefaultIPv4, netip.MustParsePrefix("2001:db8::/64")})
	if err != nil {
		t.Fatal(err)
	}
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	tcp := func(a netip.Addr, port uint16) sockdiag.Listener { return sockdiag.Listener{Addr: a, Port: port} }
	for _, tt := range []struct {
		name    string
		publish Publish
		listens []sockdiag.Listener
		want    string
	}{
		{"any address of IPv4", Publish{}, []sockdiag.Listener{tcp(any4, 80)}, "*:80/tcp>10.0.2.100:80"},
		{"any address of IPv6 alone", Publish{}, []sockdiag.Listener{tcp(any6, 80)}, "*:80/tcp>[2001:db8::100]:80"},
		{"any address", Publish{}, []sockdiag.Listener{{Addr: any6, Port: 80, V4: true}}, "*:80/tcp>10.0.2.100:80 *:80/tcp>[2001:db8::100]:80"},
		{"two sockets, a family each", Publish{}, []sockdiag.Listener{tcp(any6, 80), tcp(any4, 80), tcp(any4, 80)},
			"*:80/tcp>10.0.2.100:80 *:80/tcp>[2001:db8::100]:80"},
		{"its own address", Publish{}, []sockdiag.Listener{tcp(nets[0].Addr, 80)}, "*:80/tcp>10.0.2.100:80"},
		{"loopback", Publish{}, []sockdiag.Listener{tcp(netip.MustParseAddr("127.0.0.1"), 80), tcp(netip.IPv6Loopback(), 80)}, ""},
		{"datagrams", Publish{}, []sockdiag.Listener{{Addr: any4, Port: 53, UDP: true}}, "*:53/udp>10.0.2.100:53"},
		{"a client's datagrams", Publish{}, []sockdiag.Listener{{Addr: any4, Port: 40000, UDP: true}}, ""},
		{"a high port", Publish{}, []sockdiag.Listener{tcp(any4, 40000)}, "*:40000/tcp>10.0.2.100:40000"},
		{"an excepted port", Publish{Except: []PortRange{{First: 80, Last: 90, TCP: true}}}, []sockdiag.Listener{tcp(any4, 85), {Addr: any4, Port: 85, UDP: true}}, "*:85/udp>10.0.2.100:85"},
		{"selected ports", Publish{Only: []PortRange{{First: 80, Last: 80, TCP: true, UDP: true}}}, []sockdiag.Listener{tcp(any4, 80), tcp(any4, 81)}, "*:80/tcp>10.0.2.100:80"},
		{"at an address", Publish{At: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, []sockdiag.Listener{tcp(any4, 80)}, "192.0.2.1:80/tcp>10.0.2.100:80"},
		{"one that is given anyway", Publish{Ports: []Port{{Port: 80, Inside: 8080}}}, []sockdiag.Listener{tcp(any4, 80)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := ports{}
			cfg := &Config{Plan: plan.Plan{Nets: nets}, Publish: tt.publish, Log: slog.New(slog.DiscardHandler)}
			p := newPublisher(cfg, host)
			for range 2 { // the second look changes nothing
				p.apply(p.wanted(tt.listens))
				if host.String() != tt.want {
					t.Errorf("open: %s\nwant: %s", host, tt.want)
				}
			}
			p.apply(p.wanted(nil))
			if len(host) != 0 {
				t.Errorf("still open when nothing listens: %s", host)
			}
		})
	}
}

func TestPortsThatAreGiven(t *testing.T) {
	nets, err := plan.NetsOf([]netip.Prefix{plan.DefaultIPv4})
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(&Config{Plan: plan.Plan{Nets: nets}}, ports{})
	got := p.fixed(Port{Host: netip.MustParseAddr("192.0.2.1"), Port: 8080, Inside: 80, UDP: true})
	want := gateway.HostPortKey{Pod: portName, HostIP: netip.MustParseAddr("192.0.2.1"), Port: 8080, Protocol: wire.ProtoUDP}
	if got.HostPortKey != want || len(got.Endpoints) != 1 || got.Endpoints[0].Addr != nets[0].Addr || got.Endpoints[0].Port != 80 {
		t.Errorf("got %+v", got)
	}
}
