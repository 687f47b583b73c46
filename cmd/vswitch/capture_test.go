package main

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/wiretest"
)

// Capture implements apiv1.NodeServer: two packets, one of them lost on the way.
func (f *fakeDaemon) Capture(r *apiv1.CaptureRequest, stream apiv1.Node_CaptureServer) error {
	f.captured = r
	if r.GetFilter() == "bad" {
		return status.Error(codes.InvalidArgument, "filter \"bad\": no")
	}
	data := wiretest.Packet{
		Src: netip.MustParseAddr("10.244.0.2"), Dst: netip.MustParseAddr("10.244.1.2"), Proto: 17, SrcPort: 9, DstPort: 53, Payload: []byte("hi"),
	}.Frame()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.Local).UnixNano()
	if r.GetFilter() == "arp" { // nobody asks
		return stream.Send(&apiv1.CaptureReply{Ended: true})
	}
	for _, reply := range []*apiv1.CaptureReply{
		{},
		{Packets: []*apiv1.CapturedPacket{
			{UnixNano: at, Interface: "default/web", Port: "default/web/c/eth0", Bytes: uint32(len(data)), Data: data, Drop: "no-route"},
			{UnixNano: at, Interface: "tunnel", Port: "tunnel", Egress: true, Peer: "b", Bytes: uint32(len(data)), Data: data, SegmentBytes: 1400, SegmentKind: "udp"},
		}},
		{Ended: true, Lost: 3},
	} {
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
	return nil
}

func TestCapturePrintsALineForEachPacket(t *testing.T) {
	f := &fakeDaemon{}
	socket := serve(t, f)
	out, err := run(t, "", "capture", "--socket", socket, "--pod", "web", "-c", "2", "--duration", "1500ms", "-s", "96", "udp", "port", "53")
	if err != nil {
		t.Fatal(err)
	}
	want := "capturing; Ctrl-C ends it\n" +
		"03:04:05.000006 default/web in  IP 10.244.0.2:9 > 10.244.1.2:53: UDP, length 2 [dropped: no-route]\n" +
		"03:04:05.000006 tunnel out IP 10.244.0.2:9 > 10.244.1.2:53: UDP, length 2 [super-frame: udp segments of 1400 bytes] [to node b]\n" +
		"2 packets captured, 3 lost for want of room\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if r := f.captured; r.Pod != "default/web" || r.Filter != "udp port 53" || r.MaxPackets != 2 || r.MaxMilliseconds != 1500 || r.SnapBytes != 96 {
		t.Errorf("asked for %v", r)
	}
}

func TestCaptureWritesAFile(t *testing.T) {
	socket := serve(t, &fakeDaemon{})
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if out, err := run(t, "", "capture", "--socket", socket, "-w", file); err != nil || !strings.Contains(out, "2 packets captured") {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"default/web", "tunnel", "dropped: no-route", "super-frame: udp segments of 1400 bytes; to node b"} {
		if !bytes.Contains(b, []byte(text)) {
			t.Errorf("the file lacks %q", text)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v: mode %v, want 0600", err, info.Mode())
	}
}

// tcpdump takes a capture of nothing for what it is, and not for a damaged file.
func TestTcpdumpReadsACaptureOfNothing(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if out, err := run(t, "", "capture", "--socket", serve(t, &fakeDaemon{}), "-w", file, "arp"); err != nil || !strings.Contains(out, "0 packets captured") {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(tcpdump, "-nr", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCaptureErrors(t *testing.T) {
	socket := serve(t, &fakeDaemon{})
	for want, args := range map[string][]string{
		`filter "bad": no`:   {"bad"},
		"-w /nonexistent/x:": {"-w", "/nonexistent/x"},
		"--duration -1s":     {"--duration", "-1s"},
		"[pod tunnel]":       {"--pod", "a/b", "--tunnel"},
	} {
		if _, err := run(t, "", append([]string{"capture", "--socket", socket}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q in it", args, err, want)
		}
	}
}
