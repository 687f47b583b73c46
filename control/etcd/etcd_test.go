package etcd

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/control/embedded"
	"vswitch/vswitch/frame"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// etcd's server starts these for the life of a process.
		goleak.IgnoreTopFunction("go.etcd.io/etcd/server/v3/storage/backend.(*backend).run"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"),
	)
}

// server is a real store, run in this process so that a test can end and wipe it.
type server struct {
	t    *testing.T
	dir  string
	stop func()
}

func newServer(t *testing.T) *server {
	t.Helper()
	t.Parallel()                         // these tests mostly wait
	dir, err := os.MkdirTemp("", "etcd") // short: a socket's path goes below it
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir}
	s.start()
	t.Cleanup(func() {
		s.stop()
		os.RemoveAll(dir)
	})
	return s
}

func (s *server) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- embedded.Serve(ctx, embedded.Config{Dir: s.dir}, io.Discard) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
}

func (s *server) wipe() {
	s.stop()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

// store is a node's end of it, quick to time out.
func (s *server) store(node string, change ...func(*Config)) *Store {
	s.t.Helper()
	cfg := Config{
		Endpoints: []string{embedded.ClientURL(s.dir)}, Node: node,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		LeaseTTL:     2 * time.Second, Timeout: 2 * time.Second,
	}
	for _, c := range change {
		c(&cfg)
	}
	st, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { st.Close() })
	return st
}

func claimOf(node, instance string) control.Claim {
	return control.Claim{
		Node: node, Instance: instance,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		Facts: control.NodeFacts{
			Underlays: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, UDPPorts: []uint16{8472},
			VNI: 1, VTEPMAC: frame.MAC{2, 0, 0, 0, 0, 1},
		},
	}
}

func (s *server) context() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *server) claim(st *Store, instance string) control.Claim {
	s.t.Helper()
	c, err := st.ClaimNode(s.context(), claimOf(st.cfg.Node, instance))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// node is a store that runs, with what its sink has seen.
type node struct {
	*Store
	view  *view
	stop  func()
	ended chan error // what Run returned
}

func (s *server) node(name string, change ...func(*Config)) *node {
	s.t.Helper()
	st := s.store(name, change...)
	n := &node{Store: st, view: &view{objs: map[control.Key]control.Object{}, wake: make(chan struct{}, 1)}}
	s.claim(st, "instance of "+name)
	n.LoadPods(nil)
	n.run(s)
	return n
}

func (n *node) run(s *server) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.ended = make(chan error, 1)
	go func() {
		defer close(done)
		n.ended <- n.Run(ctx, n.view)
	}()
	n.stop = func() {
		cancel()
		<-done
	}
	s.t.Cleanup(n.stop)
}

// view is a sink that keeps what it is told, as any must.
type view struct {
	mu     sync.Mutex
	objs   map[control.Key]control.Object
	resets int
	away   bool
	wake   chan struct{}
}

func (v *view) change(f func()) {
	v.mu.Lock()
	f()
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *view) Reset(all []control.Object) {
	v.change(func() {
		v.resets++
		clear(v.objs)
		for _, o := range all {
			v.objs[control.KeyOf(o)] = o
		}
	})
}

func (v *view) Update(puts []control.Object, deletes []control.Key) {
	v.change(func() {
		for _, o := range puts {
			v.objs[control.KeyOf(o)] = o
		}
		for _, k := range deletes {
			delete(v.objs, k)
		}
	})
}

func (v *view) Reachable(ok bool) { v.change(func() { v.away = !ok }) }

// await waits until cond holds of what the sink has seen.
func (v *view) await(t *testing.T, what string, cond func(*view) bool) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		v.mu.Lock()
		ok := cond(v)
		keys := slices.Collect(maps.Keys(v.objs))
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-v.wake:
		case <-timeout:
			t.Fatalf("waiting for %s; seen %v", what, keys)
		}
	}
}

func has(keys ...control.Key) func(*view) bool {
	return func(v *view) bool {
		return !slices.ContainsFunc(keys, func(k control.Key) bool { return v.objs[k] == nil })
	}
}

func hasNot(k control.Key) func(*view) bool {
	return func(v *view) bool { return v.resets > 0 && v.objs[k] == nil }
}

func leaseKey(node string) control.Key { return control.Key{Kind: control.KindLease, Name: node} }
func nodeKey(node string) control.Key  { return control.Key{Kind: control.KindNode, Name: node} }

func pod(node, name string) *corev1.Pod {
	return control.NewPod(control.PodInfo{
		Node: node, Namespace: "default", Name: name, ContainerID: "c-" + name, Interface: "eth0",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2")}, MAC: frame.MAC{2, 0, 0, 0, 0, 9},
	})
}

func decode(t *testing.T, yaml string) []control.Object {
	t.Helper()
	objs, err := control.Decode([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

func serviceYAML(name, extra string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  selector: {app: %s}\n  ports: [{port: 80}]\n%s", name, name, extra)
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", parts)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q; want %q in it", err, p)
		}
	}
}
