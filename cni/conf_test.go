package cni

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"vswitch/control/api"
	"vswitch/internal/netif"
)

// codeOf is the CNI code of an error, 0 for nil. An error without a code is a
// test failure: a runtime would see 999.
func codeOf(t *testing.T, err error) uint {
	t.Helper()
	if err == nil {
		return 0
	}
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("error without a CNI code: %v", err)
	}
	return e.Code
}

const goodConf = `{"cniVersion":"1.1.0","name":"net","type":"vswitch-cni","socket":"/run/vs.sock"}`

// with is goodConf with more keys.
func with(keys string) string { return strings.TrimSuffix(goodConf, "}") + "," + keys + "}" }

func TestConfRefusesWhatItCannotDo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		conf   string
		strict uint // code for ADD
		del    uint // code for DEL
		says   string
	}{
		{"the least there is", goodConf, 0, 0, ""},
		{"no JSON", `{"cniVersion"`, 6, 6, ""},
		{"a list", `[]`, 6, 6, ""},
		{"a name that is a number", `{"name":5,"type":"vswitch-cni"}`, 6, 6, ""},
		{"no name", `{"type":"vswitch-cni"}`, 7, 7, "name"},
		{"no type", `{"name":"n"}`, 7, 7, "vswitch-cni"},
		{"another plugin's type", `{"name":"n","type":"bridge"}`, 7, 7, "bridge"},
		{"a relative socket", `{"name":"n","type":"vswitch-cni","socket":"vs.sock"}`, 7, 7, "vs.sock"},
		{"a socket path that is too long", `{"name":"n","type":"vswitch-cni","socket":"/` + strings.Repeat("s", 200) + `"}`, 7, 7, "201"},
		{"an unknown key", with(`"mtu":1400`), 2, 0, `"mtu": 1400`},
		{"a key in the wrong case", with(`"Socket":"/x"`), 2, 0, "Socket"},
		{"address management of its own", with(`"ipam":{"type":"host-local"}`), 2, 0, "host-local"},
		{"masquerading", with(`"ipMasq":true`), 2, 0, "ipMasq"},
		{"port mappings", with(`"capabilities":{"portMappings":true},"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":""}]}`), 0, 0, ""},
		{"another capability", with(`"capabilities":{"portMappings":true,"bandwidth":true}`), 2, 0, "bandwidth"},
		{"what another capability gives", with(`"runtimeConfig":{"bandwidth":{"ingressRate":1}}`), 2, 0, "bandwidth"},
		{"port mappings that are no list", with(`"runtimeConfig":{"portMappings":{}}`), 6, 0, "portMappings"},
		{"a port of the host that is none", with(`"runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80}]}`), 7, 0, "portMappings[0].hostPort: 0"},
		{"a port of the container that is none", with(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":65536}]}`), 7, 0, "containerPort: 65536"},
		{"a port that is text", with(`"runtimeConfig":{"portMappings":[{"hostPort":"80"}]}`), 6, 0, "portMappings"},
		{"a protocol that host sockets don't have", with(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"sctp"}]}`), 7, 0, "want tcp or udp"},
		{"a host address that is none", with(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"web"}]}`), 7, 0, `hostIP: "web"`},
		{"a host port to two places", with(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80},{"hostPort":80,"containerPort":81}]}`), 7, 0, "leads to 80 already"},
		{"no runtime configuration to speak of", with(`"runtimeConfig":{},"capabilities":{"portMappings":false},"ipam":{}`), 0, 0, ""},
		{"a reserved key", with(`"cni.dev/whatever":1`), 0, 0, ""},
		{"arguments for others", with(`"args":{"other":{"a":1},"cni":{"ips":["192.0.2.1"]}}`), 0, 0, ""},
		{"labels that are no list", with(`"args":{"cni":{"labels":{"a":"b"}}}`), 6, 0, "args"},
		{"a label without a key", with(`"args":{"cni":{"labels":[{"value":"b"}]}}`), 7, 0, "label"},
		{"a label twice", with(`"args":{"cni":{"labels":[{"key":"a","value":"b"},{"key":"a","value":"c"}]}}`), 7, 0, `"a"`},
		{"no offload", with(`"offload":"off"`), 0, 0, ""},
		{"an offload there isn't", with(`"offload":"on"`), 7, 0, `"on"`},
		{"an offload that is no word", with(`"offload":true`), 7, 0, "true"},
		{"a name server", with(`"dns":{"nameservers":["192.0.2.53"]}`), 0, 0, ""},
		{"name servers that are none", with(`"dns":[]`), 6, 0, "dns"},
		{"an empty previous result", with(`"prevResult":{}`), 0, 0, ""},
		{"a previous result of an unknown version", with(`"prevResult":{"cniVersion":"9.0.0"}`), 6, 0, "prevResult"},
		{"a previous result with null in it", with(`"prevResult":{"cniVersion":"0.4.0","interfaces":[null]}`), 6, 0, "null"},
		{"a previous result that is null", with(`"prevResult":null`), 0, 0, ""},
		{"valid attachments that are no list", with(`"cni.dev/valid-attachments":{}`), 6, 6, "valid-attachments"},
		{"a valid attachment without an interface", with(`"cni.dev/valid-attachments":[{"containerID":"a"}]`), 7, 7, "ifname"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, mode := range []struct {
				name string
				s    strictness
				want uint
			}{{"ADD", strict, tt.strict}, {"DEL", lenient, tt.del}} {
				_, err := parseConf([]byte(tt.conf), mode.s)
				if got := codeOf(t, err); got != mode.want {
					t.Errorf("%s: code %d (%v), want %d", mode.name, got, err, mode.want)
				}
				if err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%s: %q doesn't say %q", mode.name, err, tt.says)
				}
			}
		})
	}
}

func TestConfValues(t *testing.T) {
	c, err := parseConf([]byte(with(`
		"args":{"cni":{"labels":[{"key":"app","value":"web"},{"key":"tier","value":""}]}},
		"dns":{"domain":"example.com"}, "offload":"off",
		"prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}],"ips":[{"version":"4","address":"192.0.2.1/32"}]}`)), strict)
	if err != nil {
		t.Fatal(err)
	}
	if c.Network != "net" || c.Socket != "/run/vs.sock" || c.CNIVersion != "1.1.0" || c.DNS.Domain != "example.com" {
		t.Errorf("got %+v", c)
	}
	if !c.Plain {
		t.Error("offload off makes no plain TAP")
	}
	if want := map[string]string{"app": "web", "tier": ""}; !maps.Equal(c.Labels, want) {
		t.Errorf("labels %v, want %v", c.Labels, want)
	}
	if len(c.Prev.Interfaces) != 1 || len(c.Prev.IPs) != 1 || c.Prev.IPs[0].Address.String() != "192.0.2.1/32" {
		t.Errorf("prevResult %+v", c.Prev)
	}
	if c.Valid != nil {
		t.Errorf("valid attachments %v without a list", c.Valid)
	}
}

func TestValidAttachmentsTellAbsentFromEmpty(t *testing.T) {
	for _, tt := range []struct {
		name, conf string
		want       int // entries; -1: no list
	}{
		{"absent", goodConf, -1},
		{"empty", with(`"cni.dev/valid-attachments":[]`), 0},
		{"null, as a Go runtime writes an empty list", with(`"cni.dev/valid-attachments":null`), 0},
		{"one", with(`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`), 1},
		{"under its first name", with(`"cni.dev/attachments":[{"containerID":"a","ifname":"eth0"}]`), 1},
		{"under both", with(`"cni.dev/attachments":[],"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseConf([]byte(tt.conf), lenient)
			if err != nil {
				t.Fatal(err)
			}
			got := len(c.Valid)
			if c.Valid == nil {
				got = -1
			}
			if got != tt.want {
				t.Errorf("%d entries, want %d", got, tt.want)
			}
		})
	}
}

func FuzzConf(f *testing.F) {
	f.Add([]byte(goodConf))
	f.Add([]byte(with(`"args":{"cni":{"labels":[{"key":"a","value":"b"}]}}`)))
	f.Add([]byte(with(`"prevResult":{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","address":"192.0.2.1/32","interface":7}]}`)))
	f.Add([]byte(with(`"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.1/32","interface":-1}],"routes":[{"dst":"::/0"}]}`)))
	f.Add([]byte(with(`"prevResult":{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.1/32"}}`)))
	f.Add([]byte(with(`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`)))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		if _, err := parseConf(stdin, lenient); err != nil {
			codeOf(t, err)
		}
		c, err := parseConf(stdin, strict)
		if err != nil {
			codeOf(t, err)
			return
		}
		// What is accepted can be used: a result made of it, a CHECK against it.
		s := &netif.Spec{Name: "eth0"}
		if _, err := resultOf(c, "/ns", s, api.Resolver{}).GetAsVersion("0.3.1"); err != nil {
			t.Errorf("no result: %v", err)
		}
		if c.Prev != nil {
			if l, err := findListed(c.Prev, "eth0", ""); err == nil {
				_ = l.agrees(s)
			}
		}
	})
}

func TestPortMappings(t *testing.T) {
	c, err := parseConf([]byte(with(`"runtimeConfig":{"portMappings":[
		{"hostPort":8080,"containerPort":80,"protocol":"TCP"},
		{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"::ffff:192.0.2.1"},
		{"hostPort":8080,"containerPort":80},
		{"hostPort":8080,"containerPort":81,"protocol":"udp"}]}`)), strict)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range c.Ports {
		got = append(got, fmt.Sprintf("%s/%d/%s->%d", p.HostIP, p.HostPort, p.Protocol, p.ContainerPort))
	}
	want := []string{"/8080/tcp->80", "192.0.2.1/53/udp->5353", "/8080/udp->81"}
	if !slices.Equal(got, want) {
		t.Errorf("port mappings %q, want %q", got, want)
	}
}
