package pcapng_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vswitch/internal/pcapng"
	"vswitch/internal/wiretest"
)

func write(t *testing.T, packets ...pcapng.Packet) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := pcapng.NewWriter(&out, "vswitch")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.AddInterface(pcapng.Interface{Name: "default/web", Description: "pod", SnapBytes: 262144}); err != nil {
		t.Fatal(err)
	}
	for i := range packets {
		if err := w.WritePacket(&packets[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteLost(1, 7); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var packet = wiretest.Packet{
	Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"),
	Proto: 17, SrcPort: 1000, DstPort: 53, Payload: []byte("odd"),
}.Frame()

// Every block is a whole number of words and has its length at both ends.
func TestBlocksAreWellFormed(t *testing.T) {
	b := write(t, pcapng.Packet{UnixNano: 1 << 40, Data: packet, Bytes: uint32(len(packet)), Direction: pcapng.Outbound, Comment: "dropped: no-route"})
	var kinds []uint32
	for len(b) > 0 {
		kind, n := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatalf("block %#x of %d bytes: %x", kind, n, b)
		}
		kinds = append(kinds, kind)
		if kind == 6 {
			if got := binary.LittleEndian.Uint32(b[12:]); got != 1<<8 {
				t.Errorf("time's high word is %#x, want %#x", got, 1<<8)
			}
			// After the data, padded: direction 2, then the comment.
			options := b[28+(len(packet)+3)&^3:]
			want := append([]byte{2, 0, 4, 0, 2, 0, 0, 0, 1, 0, 17, 0}, "dropped: no-route\x00\x00\x00"...)
			if !bytes.HasPrefix(options, want) {
				t.Errorf("options %x, want %x", options, want)
			}
		}
		b = b[n:]
	}
	if want := []uint32{0x0a0d0d0a, 1, 6, 5}; !equal(kinds, want) {
		t.Errorf("blocks %x, want %x", kinds, want)
	}
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// tcpdump reads what was written: time, name of nothing lost, addresses.
func TestTcpdumpReadsIt(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(file, write(t, pcapng.Packet{UnixNano: 1e9 + 5, Data: packet, Bytes: uint32(len(packet))}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tcpdump, "-nn", "-tt", "--time-stamp-precision=nano", "-r", file).CombinedOutput()
	if want := "1.000000005 IP 192.0.2.1.1000 > 192.0.2.2.53"; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v:\n%s\nwant %q in it", err, out, want)
	}
}

type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestErrors(t *testing.T) {
	if _, err := pcapng.NewWriter(full{}, "x"); !errors.Is(err, errFull) {
		t.Errorf("err %v, want the writer's", err)
	}
	w, err := pcapng.NewWriter(&bytes.Buffer{}, "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WritePacket(&pcapng.Packet{}); err == nil {
		t.Error("a packet of an interface never announced was written")
	}
	if err := w.WriteLost(0, 1); err != nil {
		t.Errorf("nothing captured, nothing to say: %v", err)
	}
}
