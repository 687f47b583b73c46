package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vswitch/vswitch/frame"
)

func parseOptions(args ...string) (*Options, error) {
	var o Options
	f := pflag.NewFlagSet("slirp4netns", pflag.ContinueOnError)
	o.AddFlags(f)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return &o, o.Complete(f.Args())
}

// The command lines are those that RootlessKit 1.1 and podman 4.3 write.
func TestCommandLines(t *testing.T) {
	mac := frame.MAC{2, 0, 0, 0, 0, 1}
	o, err := parseOptions("--mtu", "65520", "-r", "3", "--disable-host-loopback", "--api-socket", "/run/api.sock", "4711", "tap0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.Plan(mac, 2)
	if err != nil {
		t.Fatal(err)
	}
	if o.Configure || o.ReadyFD != 3 || o.ExitFD != -1 || o.API != "/run/api.sock" || o.NetNS != "/proc/4711/ns/net" {
		t.Errorf("%+v", o)
	}
	if p.MTUBytes != 65520 || p.HostLoopback || p.Interface != "tap0" || len(p.Nets) != 1 || p.Nets[0].Addr.String() != "10.0.2.100" {
		t.Errorf("%+v", p)
	}

	o, err = parseOptions("--disable-host-loopback", "--mtu=65520", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6", "--cidr=10.1.0.0/16",
		"-c", "-e", "3", "-r", "4", "--netns-type=path", "/run/netns/a", "tap0")
	if err != nil {
		t.Fatal(err)
	}
	if p, err = o.Plan(mac, 1); err != nil {
		t.Fatal(err)
	}
	if !o.Configure || o.ExitFD != 3 || o.ReadyFD != 4 || o.NetNS != "/run/netns/a" || len(o.Ignored) != 2 {
		t.Errorf("%+v", o)
	}
	if len(p.Nets) != 2 || p.Nets[0].Router.String() != "10.1.0.2" || p.Nets[1].DNS.String() != "fd00::3" || p.MAC != mac {
		t.Errorf("%+v", p)
	}

	o, err = parseOptions("--macaddress", "02:00:00:00:00:07", "1", "tap0")
	if err != nil {
		t.Fatal(err)
	}
	if p, err = o.Plan(mac, 1); err != nil || p.MAC.String() != "02:00:00:00:00:07" || !p.HostLoopback || p.MTUBytes != 1500 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "1", "x tap0", "0 tap0", "--netns-type=file / tap0", "--target-type=bess 1 tap0",
		"--outbound-addr=192.0.2.1 1 tap0", "--cidr=10.0.2.0 1 tap0", "--cidr=fd00::/64 1 tap0", "--macaddress=x 1 tap0"} {
		if o, err := parseOptions(strings.Fields(bad)...); err == nil {
			t.Errorf("%q is taken: %+v", bad, o)
		}
	}
}

// double keeps what it is told, and refuses port 1.
type double struct {
	all  []Forward
	last int
}

func (d *double) Add(f Forward) (int, error) {
	if f.HostPort == 1 {
		return 0, errors.New("taken")
	}
	d.last++
	f.ID = d.last
	d.all = append(d.all, f)
	return d.last, nil
}

func (d *double) Remove(id int) error {
	n := len(d.all)
	if d.all = slices.DeleteFunc(d.all, func(f Forward) bool { return f.ID == id }); len(d.all) == n {
		return errors.New("no such id")
	}
	return nil
}

func (d *double) List() []Forward { return d.all }

func TestRequestsAreAnsweredAsSlirp4netnsDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() { defer close(served); Serve(ctx, l, &double{}, slog.New(slog.DiscardHandler)) }()
	defer func() { cancel(); <-served }()
	add := `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}`
	for _, tt := range []struct{ ask, want string }{
		{`{"execute": "list_hostfwd"}`, `{"return":{"entries":[]}}`},
		{add, `{"return":{"id":1}}`},
		{`{"execute": "add_hostfwd", "arguments": {"proto": "udp", "host_port": 53, "guest_port": 53}}`, `{"return":{"id":2}}`},
		{`{"execute": "list_hostfwd"}`, `{"return":{"entries":[` +
			`{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80},` +
			`{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":53,"guest_addr":"","guest_port":53}]}}`},
		{`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`, `{"return":{}}`},
		{`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`, `{"error":{"desc":"bad request: remove_hostfwd: no such id"}}`},
		{`{"execute": "remove_hostfwd"}`, `{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}`},
		{strings.Replace(add, "8080", "1", 1), `{"error":{"desc":"bad request: add_hostfwd: taken"}}`},
		{strings.Replace(add, "8080", "65536", 1), `{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port 65536"}}`},
		{strings.Replace(add, "tcp", "sctp", 1), `{"error":{"desc":"bad request: add_hostfwd: bad arguments.proto \"sctp\""}}`},
		{strings.Replace(add, "127.0.0.1", "localhost", 1), `{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_addr \"localhost\""}}`},
		{`{"execute": "quit"}`, `{"error":{"desc":"bad request: unknown execute \"quit\""}}`},
	} {
		if got := ask(t, path, tt.ask); got != tt.want {
			t.Errorf("%s\nis answered %s\nwant        %s", tt.ask, got, tt.want)
		}
	}
	for _, bad := range []string{"", "{", `"` + strings.Repeat("x", maxRequestBytes) + `"`, "[]"} {
		var answer struct{ Error struct{ Desc string } }
		if got := ask(t, path, bad); json.Unmarshal([]byte(got), &answer) != nil || !strings.Contains(answer.Error.Desc, "cannot parse JSON") {
			t.Errorf("%.20q is answered %s", bad, got)
		}
	}
}

// An answer is written while others may change what it is about.
func TestAListStaysAsItWas(t *testing.T) {
	f := &double{}
	for port := range uint16(2) {
		if _, err := f.Add(Forward{HostPort: 8080 + port}); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{forwards: f}
	answer := s.answer(&request{Execute: "list_hostfwd"})
	want := fmt.Sprint(answer)
	if err := f.Remove(1); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(answer); got != want {
		t.Errorf("it has become %s, was %s", got, want)
	}
}

func ask(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, text)
	c.CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(answer))
}

func FuzzForward(f *testing.F) {
	f.Add([]byte(`{"proto": "tcp", "host_port": 8080, "guest_port": 80}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		w, err := parseForward(text)
		if err == nil && (w.HostPort == 0 || w.GuestPort == 0 || !w.HostAddr.IsValid()) {
			t.Errorf("%s is read as %+v", text, w)
		}
	})
}
