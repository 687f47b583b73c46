package attach

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/control/ipam"
	"vswitch/internal/fdstore"
	"vswitch/tap"
	"vswitch/vswitch"
)

// bench is a manager among doubles that remember what it did to them.
type bench struct {
	*Manager
	t      *testing.T
	leases *leases
	ports  *ports
	routes routes
	pods   *pods
	fds    *fdstore.Memory
	forgot []netip.Addr
	file   *File
	cfg    Config
	queues int64 // open before the test
}

func newBench(t *testing.T) *bench {
	b := &bench{
		t: t, leases: &leases{held: map[string][]netip.Addr{}, free: 10}, ports: &ports{open: map[uint32]vswitch.PortConfig{}},
		routes: routes{}, pods: &pods{published: map[control.Key]*corev1.Pod{}}, fds: &fdstore.Memory{},
		file:   &File{Path: filepath.Join(t.TempDir(), "attachments.json"), BootID: "boot-1"},
		queues: openQueues.Load(),
	}
	b.cfg = Config{
		Node: "a", Ports: b.ports, Routes: b.routes, Publisher: b.pods, FDs: b.fds,
		OpenQueue: func(fd int, _ tap.Features) (vswitch.Queue, error) { return newQueue(fd), nil },
		Forget:    func(a []netip.Addr) { b.forgot = append(b.forgot, a...) },
		Records:   b.file, MTUBytes: 1450, Queues: 2, Timeout: time.Minute, Log: slog.New(slog.DiscardHandler),
	}
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.fds.Close() })
	return b
}

// restart makes a new manager of what the last one left on disk.
func (b *bench) restart() {
	b.t.Helper()
	m, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Manager = m
}

func request(id string) Request {
	return Request{
		Key: Key{Network: "vswitch", ContainerID: id, Ifname: "eth0"}, Netns: "/run/netns/" + id,
		Pod: Pod{Namespace: "default", Name: "pod-" + id, Labels: map[string]string{"app": "web"}},
	}
}

// add makes an attachment pending.
func (b *bench) add(id string) Attachment {
	b.t.Helper()
	a, err := b.Add(request(id))
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// attach makes one attached.
func (b *bench) attach(id string) Attachment {
	b.t.Helper()
	a := b.add(id)
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); err != nil {
		b.t.Fatal(err)
	}
	return a
}

// queueFDs are descriptors of the kind a plugin would pass: here of /dev/null.
func (b *bench) queueFDs(n int) []int {
	b.t.Helper()
	var fds []int
	for range n {
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			b.t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// state tells where an attachment is, and checks that everything agrees with it.
func (b *bench) state(id string) string {
	b.t.Helper()
	a, err := b.Get(request(id).Key)
	h := holder(request(id).Key)
	if err != nil {
		if !errors.Is(err, ErrNotFound) {
			b.t.Fatal(err)
		}
		if b.leases.held[h] != nil {
			b.t.Errorf("%s is gone and its lease is not", id)
		}
		return "gone"
	}
	if !slices.Equal(b.leases.held[h], a.Addrs) {
		b.t.Errorf("%s is %v with %v, and the lease says %v", id, a.State, a.Addrs, b.leases.held[h])
	}
	port := slices.ContainsFunc(slices.Collect(maps.Values(b.ports.open)), func(p vswitch.PortConfig) bool { return p.Name == a.Port })
	_, err = b.fds.Get("tap/" + id + "/eth0")
	stored := err == nil
	routed := 0
	for _, addr := range a.Addrs {
		if _, ok := b.routes[addr]; ok {
			routed++
		}
	}
	open := a.State == Attached
	if port != open || stored != open || (routed == len(a.Addrs)) != open || open != (b.pods.published[control.PodKey("a", id, "eth0")] != nil) {
		b.t.Errorf("%s is %v: port %v, descriptors %v, %d routes of %d, published %v", id, a.State, port, stored, routed, len(a.Addrs), !open)
	}
	return a.State.String()
}

func TestLifeOfAnAttachment(t *testing.T) {
	b := newBench(t)
	a := b.add("c1")
	if got := b.state("c1"); got != "pending" {
		t.Fatalf("after Add: %s", got)
	}
	if a.MTUBytes != 1450 || a.Queues != 2 || a.MAC.IsZero() || a.MAC.IsMulticast() || len(a.Token) != 32 {
		t.Errorf("attachment %+v", a)
	}
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); err != nil {
		t.Fatal(err)
	}
	if got := b.state("c1"); got != "attached" {
		t.Fatalf("after Attach: %s", got)
	}
	pod := b.pods.published[control.PodKey("a", "c1", "eth0")]
	if pod.Name != "pod-c1" || pod.Labels["app"] != "web" || pod.Status.PodIP != a.Addrs[0].String() {
		t.Errorf("published %+v", pod)
	}
	for range 2 { // DEL comes twice
		if err := b.Delete(a.Key); err != nil {
			t.Fatal(err)
		}
		if got := b.state("c1"); got != "gone" {
			t.Fatalf("after Delete: %s", got)
		}
	}
	if !slices.Equal(b.forgot, a.Addrs) {
		t.Errorf("flows forgotten of %v, want %v", b.forgot, a.Addrs)
	}
	b.leaks()
}

// leaks checks that nothing of any pod is left anywhere.
func (b *bench) leaks() {
	b.t.Helper()
	names, err := b.fds.Names()
	if len(b.ports.open)+len(b.routes)+len(b.pods.published)+len(b.leases.held)+len(names) != 0 || err != nil {
		b.t.Errorf("left: ports %v, routes %v, pods %v, leases %v, descriptors %v %v", b.ports.open, b.routes, b.pods.published, b.leases.held, names, err)
	}
	if n := openQueues.Load() - b.queues; n != 0 {
		b.t.Errorf("%d queues left open", n)
	}
}

func TestAddRefuses(t *testing.T) {
	long := strings.Repeat("x", 300)
	tests := []struct {
		name   string
		change func(*Request)
		field  string
	}{
		{"no container id", func(r *Request) { r.ContainerID = "" }, "container_id"},
		{"a container id that climbs", func(r *Request) { r.ContainerID = "../../etc" }, "container_id"},
		{"a container id of another script", func(r *Request) { r.ContainerID = "контейнер" }, "container_id"},
		{"a container id too long", func(r *Request) { r.ContainerID = long }, "container_id"},
		{"no interface", func(r *Request) { r.Ifname = "" }, "ifname"},
		{"an interface of 16 bytes", func(r *Request) { r.Ifname = strings.Repeat("e", 16) }, "ifname"},
		{"an interface with a slash", func(r *Request) { r.Ifname = "a/b" }, "ifname"},
		{"an interface with a space", func(r *Request) { r.Ifname = "a b" }, "ifname"},
		{"an interface that is a directory", func(r *Request) { r.Ifname = ".." }, "ifname"},
		{"a relative namespace path", func(r *Request) { r.Netns = "netns/x" }, "netns"},
		{"no namespace path", func(r *Request) { r.Netns = "" }, "netns"},
		{"a network with a slash", func(r *Request) { r.Network = "a/b" }, "network"},
		{"no pod name", func(r *Request) { r.Pod.Name = "" }, "pod name"},
		{"a pod name with a slash", func(r *Request) { r.Pod.Name = "a/b" }, "pod name"},
		{"a pod namespace in upper case", func(r *Request) { r.Pod.Namespace = "Default" }, "pod namespace"},
		{"a uid with a newline", func(r *Request) { r.Pod.UID = "a\nb" }, "pod uid"},
		{"a label key with a space", func(r *Request) { r.Pod.Labels = map[string]string{"a b": "c"} }, "label key"},
		{"a label value too long", func(r *Request) { r.Pod.Labels = map[string]string{"a": long} }, "value of label a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			r := request("c1")
			tt.change(&r)
			_, err := b.Add(r)
			var invalid *InvalidError
			if !errors.As(err, &invalid) || invalid.Field != tt.field {
				t.Errorf("got %v, want an InvalidError of %s", err, tt.field)
			}
			b.leaks()
		})
	}
}

func TestAddBeforeTheNodeHasACIDR(t *testing.T) {
	b := newBench(t)
	b.restart() // and no Serve
	if _, err := b.Add(request("c1")); !errors.Is(err, ErrNotReady) {
		t.Errorf("got %v, want ErrNotReady", err)
	}
}

func TestAddTwiceIsRefusedInEveryState(t *testing.T) {
	b := newBench(t)
	b.add("c1")
	b.attach("c2")
	other := request("c2")
	other.Network = "another" // the kernel would have two devices of one name
	for _, r := range []Request{request("c1"), request("c2"), other} {
		if _, err := b.Add(r); !errors.Is(err, ErrExists) {
			t.Errorf("%v: got %v, want ErrExists", r.Key, err)
		}
	}
}

func TestPoolExhausted(t *testing.T) {
	b := newBench(t)
	b.leases.free = 1
	a := b.add("c1")
	if _, err := b.Add(request("c2")); !errors.Is(err, ipam.ErrExhausted) {
		t.Fatalf("got %v, want ErrExhausted", err)
	}
	if err := b.Delete(a.Key); err != nil {
		t.Fatal(err)
	}
	b.add("c2")
}

func TestAttachRefusesAndTheTokenStaysGood(t *testing.T) {
	b := newBench(t)
	a := b.add("c1")
	broken := errors.New("broken")
	fail := map[string]func(fail bool){
		"the switch": func(fail bool) { b.ports.err = onlyIf(fail, broken) },
		"a queue": func(fail bool) {
			n := 0
			b.Manager.cfg.OpenQueue = func(fd int, _ tap.Features) (vswitch.Queue, error) {
				if n++; fail && n == 2 {
					return nil, broken
				}
				return newQueue(fd), nil
			}
		},
		"the disk":     func(fail bool) { b.Manager.cfg.Records = failing{b.file, onlyIf(fail, broken)} },
		"the fd store": func(fail bool) { b.Manager.cfg.FDs = full{b.fds, onlyIf(fail, broken)} },
	}
	for what, set := range fail {
		set(true)
		if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); !errors.Is(err, broken) {
			t.Errorf("%s fails: got %v", what, err)
		}
		if got := b.state("c1"); got != "pending" {
			t.Errorf("%s fails: %s, want pending", what, got)
		}
		if got, err := b.Get(a.Key); err != nil || got.Features != 0 || got.Problem != "" {
			t.Errorf("%s fails: %+v, %v; want it as before", what, got, err)
		}
		if kept, err := b.file.Load(); err != nil || len(kept) != 0 {
			t.Errorf("%s fails: %+v, %v is on record, want nothing", what, kept, err)
		}
		set(false)
	}
	for what, give := range map[string]struct {
		token string
		fds   int
	}{
		"no token": {"", 2}, "another token": {"0123", 2}, "too few queues": {a.Token, 1}, "too many": {a.Token, 3}, "none": {a.Token, 0},
	} {
		if err := b.Attach(give.token, tap.VNet, b.queueFDs(give.fds)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); !errors.Is(err, ErrToken) {
		t.Errorf("token used twice: %v", err)
	}
	if err := b.Delete(a.Key); err != nil {
		t.Fatal(err)
	}
	b.leaks()
}

func onlyIf(yes bool, err error) error {
	if yes {
		return err
	}
	return nil
}

func TestManyPodsAtOnce(t *testing.T) {
	b := newBench(t)
	b.leases.free = 1000
	var wg sync.WaitGroup
	for i := range 20 {
		fds := [][]int{b.queueFDs(2), b.queueFDs(2)}
		wg.Go(func() {
			for round := range 2 {
				id := fmt.Sprintf("c%d", i)
				a, err := b.Add(request(id))
				if err != nil {
					t.Errorf("add %s: %v", id, err)
					return
				}
				if err := b.Attach(a.Token, tap.VNet, fds[round]); err != nil {
					t.Errorf("attach %s: %v", id, err)
				}
				b.Sweep(time.Now())
				if err := b.Delete(a.Key); err != nil {
					t.Errorf("delete %s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
	b.leaks()
}
