package pcapfilter_test

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vswitch/internal/pcapfilter"
	"vswitch/internal/pcapng"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
)

var (
	macA = [6]byte{2, 0, 0, 0, 0, 0xa}
	macB = [6]byte{2, 0, 0, 0, 0, 0xb}
	a4   = netip.MustParseAddr("10.244.1.10")
	b4   = netip.MustParseAddr("10.244.2.20")
	a6   = netip.MustParseAddr("2001:db8:1::a")
	b6   = netip.MustParseAddr("2001:db8:2::b")
)

// frames are one of each kind that primitives tell apart.
func frames() [][]byte {
	packets := []wiretest.Packet{
		{Src: a4, Dst: b4, Proto: 6, SrcPort: 40000, DstPort: 80, Flags: wire.SYN},
		{Src: b4, Dst: a4, Proto: 6, SrcPort: 80, DstPort: 40000, Flags: wire.ACK, Payload: make([]byte, 1000)},
		{Src: a4, Dst: b4, Proto: 17, SrcPort: 53, DstPort: 53, Payload: []byte("x")},
		{Src: a4, Dst: b4, Proto: 1, ICMPType: 8, EchoID: 80, EchoSeq: 1},
		{Src: a6, Dst: b6, Proto: 6, SrcPort: 40001, DstPort: 443, Flags: wire.SYN},
		{Src: b6, Dst: a6, Proto: 17, SrcPort: 53, DstPort: 8053, Payload: []byte("answer")},
		{Src: a6, Dst: b6, Proto: 58, ICMPType: 128, EchoID: 443},
		{Src: a4, Dst: b4, Proto: 17, FragmentOffset: 1480, Payload: make([]byte, 64)},
		{Src: a4, Dst: netip.MustParseAddr("192.0.2.1"), Proto: 132, SrcPort: 1, DstPort: 80, Payload: make([]byte, 16)},
	}
	var all [][]byte
	for i, p := range packets {
		p.SrcMAC, p.DstMAC = macA, macB
		if i%2 == 1 {
			p.SrcMAC, p.DstMAC = macB, macA
		}
		all = append(all, p.Frame())
	}
	return append(all, wiretest.ARP([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1, macA, a4, [6]byte{}, netip.MustParseAddr("169.254.1.1")))
}

// good are filters that tcpdump understands alike, each of which some frames pass.
var good = []string{
	"ip", "ip6", "arp", "tcp", "udp", "sctp", "icmp", "icmp6",
	"host 10.244.1.10", "src host 10.244.1.10", "dst host 10.244.1.10", "src 10.244.1.10", "dst 2001:db8:1::a",
	"src or dst host 10.244.2.20", "src and dst net 10.244.0.0/16", "ip host 10.244.1.10", "arp host 10.244.1.10",
	"net 10.244.2.0/24", "dst net 10.244.2.0/24", "net 2001:db8:2::/48", "ip6 net 2001:db8::/32", "not net 10.244.2.0/24",
	"host 169.254.1.1", "dst host 169.254.1.1",
	"port 80", "src port 80", "dst port 80", "tcp port 80", "tcp dst port 80", "udp src port 53", "sctp port 80",
	"port 80 or 443", "tcp dst port 80 or 443", "host 10.244.2.20 or 192.0.2.1", "portrange 50-100", "dst portrange 8000-9000",
	"ip proto 1", "ip proto 17", "ip6 proto 58", "proto 132",
	"tcp and port 80", "tcp && (port 443 || port 80)", "not tcp", "! tcp and ip", "not (tcp or udp)",
	"tcp or udp and port 53", "udp and port 53 or tcp", "src host 10.244.1.10 and dst port 80",
	"ether host 02:00:00:00:00:0b", "ether src 02:00:00:00:00:0a", "ether dst 02:00:00:00:00:0b",
	"less 60", "greater 500", "icmp or icmp6 or arp",
}

func matches(t *testing.T, filter string) string {
	t.Helper()
	f, err := pcapfilter.Compile(filter)
	if err != nil {
		t.Errorf("%q: %v", filter, err)
		return ""
	}
	var got strings.Builder
	for _, b := range frames() {
		var h wire.Headers
		p := pcapfilter.Packet{Frame: b, Headers: &h}
		p.Sound = wire.Parse(b, &h) == drop.None
		got.WriteByte("-x"[btoi(f.Match(&p))])
	}
	return got.String()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tcpdump is the judge of what a filter means.
func TestFiltersMeanWhatTheyMeanToTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	// The time tells which frame it is.
	var out bytes.Buffer
	w, err := pcapng.NewWriter(&out, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.AddInterface(pcapng.Interface{Name: "x", SnapBytes: 1 << 18}); err != nil {
		t.Fatal(err)
	}
	all := frames()
	for i, b := range all {
		if err := w.WritePacket(&pcapng.Packet{UnixNano: uint64(i) * 1e9, Data: b, Bytes: uint32(len(b))}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, filter := range good {
		text, err := exec.Command(tcpdump, "-nn", "-tt", "-q", "-r", file, filter).Output()
		if err != nil {
			t.Errorf("tcpdump %q: %v", filter, err)
			continue
		}
		want := []byte(strings.Repeat("-", len(all)))
		for line := range strings.Lines(string(text)) {
			want[line[0]-'0'] = 'x'
		}
		got := matches(t, filter)
		if got != string(want) {
			t.Errorf("%q matches %s, tcpdump's %s", filter, got, want)
		}
		if !strings.Contains(got, "x") || !strings.Contains(got, "-") {
			t.Errorf("%q matches %s: it tells nothing apart", filter, got)
		}
	}
}

func TestEmptyFilterMatchesAll(t *testing.T) {
	for _, text := range []string{"", "  "} {
		if got := matches(t, text); strings.Contains(got, "-") {
			t.Errorf("%q matches %s", text, got)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for text, want := range map[string]string{
		"tcp and":                   "ends too soon",
		"prot 80":                   `"prot": want a protocol`,
		"port http":                 `"http": want a number, 0 to 65535`,
		"port 65536":                "0 to 65535",
		"portrange 9-1":             "FIRST-LAST",
		"host web":                  "names are not looked up",
		"host 10.0.0.0/8":           "an IP address",
		"net 10.0.0.1/8":            "10.0.0.0/8: no bit",
		"tcp host 10.0.0.1":         `"tcp and host ADDRESS"`,
		"icmp port 80":              "tcp, udp or sctp before a port",
		"ip6 host 10.0.0.1":         "IPv6 address after ip6",
		"arp host 2001:db8::1":      "IPv4 address after arp",
		"(tcp":                      `want ")"`,
		"tcp) or udp":               `"and" or "or"`,
		"tcp udp":                   "want a protocol",
		"80":                        `"80": want a protocol`,
		"src":                       "ends too soon",
		"ether host 1":              "MAC address",
		strings.Repeat("(", 100):    "at most 64 levels",
		strings.Repeat("tcp ", 2e3): "at most 4096 bytes",
	} {
		_, err := pcapfilter.Compile(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q in it", text, err, want)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	f, err := pcapfilter.Compile("tcp and (port 80 or 443) and not net 192.0.2.0/24 or arp host 10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	var h wire.Headers
	b := frames()[0]
	wire.Parse(b, &h)
	p := pcapfilter.Packet{Frame: b, Headers: &h, Sound: true}
	if n := testing.AllocsPerRun(100, func() { f.Match(&p) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzCompile(f *testing.F) {
	for _, text := range good {
		f.Add(text, []byte{})
	}
	for _, b := range frames() {
		f.Add("tcp or arp host 10.0.0.1 or ether host 02:00:00:00:00:0a", b)
	}
	f.Fuzz(func(_ *testing.T, text string, b []byte) {
		filter, err := pcapfilter.Compile(text)
		if err != nil {
			return
		}
		var h wire.Headers
		p := pcapfilter.Packet{Frame: b, Headers: &h}
		p.Sound = wire.Parse(b, &h) == drop.None
		filter.Match(&p)
	})
}
