package control

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/vswitch/frame"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what the code says now")

// TestTranscripts replays testdata/*.txt: commands, and what they lead to. After
// -update the change is reviewed as any other.
//
//	command [argument...]
//	input
//	----
//	output
//	(blank line)
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(text))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s differs from the code at:\n%s", path, firstDifference(string(text), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\n want %s\n got  %s", i+1, a, b)
		}
	}
	return ""
}

func replay(t *testing.T, text string) string {
	var out strings.Builder
	w := newWorld(t)
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); {
		if lines[i] == "" || strings.HasPrefix(lines[i], "#") {
			out.WriteString(lines[i])
			if i < len(lines)-1 {
				out.WriteString("\n")
			}
			i++
			continue
		}
		start := i
		for i < len(lines) && lines[i] != "----" {
			i++
		}
		if i == len(lines) {
			t.Fatalf("line %d: no ---- after the command", start+1)
		}
		block := lines[start:i]
		for i++; i < len(lines) && lines[i] != ""; i++ { // the output there was
		}
		out.WriteString(strings.Join(block, "\n") + "\n----\n")
		out.WriteString(w.do(block[0], strings.Join(block[1:], "\n")))
	}
	return out.String()
}

// world is what a transcript acts on: a set of objects, a reconciler, and a
// dataplane that is as strict as a real one.
type world struct {
	t       *testing.T
	now     time.Time
	objects *Objects
	dp      *strictDataplane
	rec     *Reconciler
}

var testSelf = Self{
	Node:         "here",
	Underlays:    []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},

	LoadBalancerCIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")},
}

func newWorld(t *testing.T) *world {
	dp := newStrictDataplane()
	return &world{
		t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), objects: NewObjects(testSelf),
		dp: dp, rec: NewReconciler(dp, ReconcilerConfig{}, discard()),
	}
}

func (w *world) do(line, input string) string {
	f := strings.Fields(line)
	switch f[0] {
	case "self": // what this node is told: zone=NAME, external-ips, nodes-balance, name-server=ADDR
		self := testSelf
		for _, word := range f[1:] {
			switch k, v, _ := strings.Cut(word, "="); k {
			case "zone":
				self.Zone = v
			case "kubernetes":
				self.Kubernetes = true
			case "external-ips":
				self.AllowExternalIPs = true
			case "nodes-balance":
				self.NodesBalance = true
			case "name-server":
				self.IsNameServer = func(a netip.Addr) bool { return a.String() == v }
			default:
				w.t.Fatalf("self %q", word)
			}
		}
		w.objects = NewObjects(self)
	case "apply":
		objs, err := Decode([]byte(input))
		if err != nil {
			return err.Error() + "\n"
		}
		for _, o := range objs {
			w.objects.Put(o)
		}
	case "reset": // a full list: the objects in the input, and the pods and leases named
		var objs []Object
		if input != "" {
			var err error
			if objs, err = Decode([]byte(input)); err != nil {
				return err.Error() + "\n"
			}
		}
		for _, word := range f[1:] {
			objs = append(objs, lease(word))
		}
		w.objects.Reset(objs, w.now)
		w.rec.Want(w.objects.Delta())
		w.rec.Sync(w.now)
	case "pod":
		w.objects.Put(podOf(w.t, f[1:]))
	case "node":
		w.objects.Put(nodeOf(w.t, f[1:]))
	case "lease":
		w.objects.Advance(w.now)
		w.objects.Put(lease(f[1]))
	case "delete":
		w.objects.Advance(w.now)
		kind, err := ParseKind(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		scope, name, ok := strings.Cut(f[2], "/")
		if !ok {
			scope, name = "", f[2]
		}
		w.objects.Delete(Key{kind, scope, name})
	case "reachable":
		w.objects.SetReachable(f[1] == "true", w.now)
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
		w.objects.Advance(w.now)
	case "fail": // the next calls on the dataplane with this key
		w.dp.fail = strings.Join(f[1:], " ")
	case "tunnels":
		return showTunnels(w.objects.State().Tunnels) + w.problems()
	case "services":
		return showServices(w.objects.State().Services) + w.problems()
	case "step":
		w.dp.calls = nil
		w.rec.Want(w.objects.Delta())
		next := w.rec.Step(w.now)
		s := strings.Join(w.dp.calls, "\n")
		if s != "" {
			s += "\n"
		}
		if !next.IsZero() {
			s += fmt.Sprintf("next in %s\n", next.Sub(w.now))
		}
		if w.rec.Holding() {
			s += "holding\n"
		}
		return s
	default:
		w.t.Fatalf("command %q", line)
	}
	return ""
}

func (w *world) problems() string {
	var s strings.Builder
	for _, p := range w.objects.Problems() {
		fmt.Fprintf(&s, "! %s: %s\n", p.Object, p.Reason)
	}
	return s.String()
}

func showTunnels(ts []Tunnel) string {
	var s strings.Builder
	for _, t := range ts {
		any := ""
		if t.AnyPort {
			any = " any"
		}
		fmt.Fprintf(&s, "%s at %s %v%s vni %d mac %s for %v\n", t.TunnelKey, t.Underlay, t.Ports, any, t.VNI, t.MAC, t.Prefixes)
	}
	return s.String()
}

func showServices(ss []Service) string {
	var b strings.Builder
	for _, s := range ss {
		fmt.Fprintf(&b, "%s %s %v:%d", s.ServiceKey, s.Protocol, s.VIPs, s.Port)
		for _, f := range []struct {
			set  bool
			text string
		}{
			{s.NodePort != 0, fmt.Sprintf("node port %d", s.NodePort)},
			{len(s.LoadBalancerIPs) > 0, fmt.Sprintf("balancers %v", s.LoadBalancerIPs)},
			{len(s.SourceRanges) > 0, fmt.Sprintf("for %v", s.SourceRanges)},
			{len(s.ExternalIPs) > 0, fmt.Sprintf("externals %v", s.ExternalIPs)},
			{s.ExternalLocal, "external-local"},
			{s.InternalLocal, "internal-local"},
			{s.HealthCheckNodePort != 0, fmt.Sprintf("health check %d", s.HealthCheckNodePort)},
			{s.Affinity != 0, fmt.Sprintf("affinity %s", s.Affinity)},
			{s.Proxy != nil && !s.Proxy.ProtocolV2, "proxy"},
			{s.Proxy != nil && s.Proxy.ProtocolV2, "proxy-v2"},
		} {
			if f.set {
				b.WriteString(" " + f.text)
			}
		}
		b.WriteString("\n")
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, "  %s", netip.AddrPortFrom(e.Addr, e.Port))
			if e.Node != "" {
				fmt.Fprintf(&b, " on %s", e.Node)
			}
			for _, c := range []struct {
				set  bool
				word string
			}{{e.Ready, "ready"}, {e.Serving, "serving"}, {e.Terminating, "terminating"}} {
				if c.set {
					b.WriteString(" " + c.word)
				}
			}
			if e.Cluster || e.Local {
				b.WriteString(" =>")
			}
			if e.Cluster {
				b.WriteString(" cluster")
			}
			if e.Local {
				b.WriteString(" local")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func lease(node string) Object {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: node}}
}

// podOf reads: name node addresses [label=value...] [terminating|notready|created=N]
func podOf(t *testing.T, f []string) Object {
	info := PodInfo{
		Name: f[0], Namespace: "default", Node: f[1], ContainerID: f[0], Interface: "eth0",
		Labels: map[string]string{}, MAC: frame.MAC{2},
	}
	for _, a := range strings.Split(f[2], ",") {
		info.Addrs = append(info.Addrs, netip.MustParseAddr(a))
	}
	words := f[3:]
	for _, word := range words {
		if k, v, ok := strings.Cut(word, "="); ok && k != "created" {
			info.Labels[k] = v
		}
	}
	p := NewPod(info)
	for _, word := range words {
		switch {
		case word == "terminating":
			now := metav1.Now()
			p.DeletionTimestamp = &now
		case word == "notready":
			p.Status.Conditions[0].Status = "False"
		case word == "done":
			p.Status.Phase = "Succeeded"
		case strings.HasPrefix(word, "created="):
			p.CreationTimestamp = metav1.Unix(int64(word[len("created=")]-'0'), 0)
		}
	}
	return p
}

// nodeOf reads: name underlay[,underlay] prefix[,prefix] [zone=NAME]
func nodeOf(t *testing.T, f []string) Object {
	c := Claim{Node: f[0], Instance: "instance-" + f[0], Facts: NodeFacts{
		UDPPorts: []uint16{8472, 8473}, VNI: 1, VTEPMAC: frame.MAC{2, 0, 0, 0, 0, byte(len(f[0]))},
	}}
	for _, a := range strings.Split(f[1], ",") {
		c.Facts.Underlays = append(c.Facts.Underlays, netip.MustParseAddr(a))
	}
	for _, p := range strings.Split(f[2], ",") {
		c.PodCIDRs = append(c.PodCIDRs, netip.MustParsePrefix(p))
	}
	for _, word := range f[3:] {
		c.Facts.Zone = strings.TrimPrefix(word, "zone=")
	}
	return NewNode(c)
}

// strictDataplane refuses what a real one would: an address, a port or a prefix
// that two keys want.
type strictDataplane struct {
	tunnels  map[TunnelKey]Tunnel
	services map[ServiceKey]Service
	calls    []string
	fail     string // calls that read so fail
	failing  func(Change) bool
}

func newStrictDataplane() *strictDataplane {
	return &strictDataplane{tunnels: map[TunnelKey]Tunnel{}, services: map[ServiceKey]Service{}}
}

var errDataplane = errors.New("refused")

func (d *strictDataplane) call(c Change, collides bool, do func()) error {
	verdict := ""
	var err error
	switch {
	case collides:
		err, verdict = fmt.Errorf("%w: taken", errDataplane), " COLLIDES"
	case d.fail != "" && c.String() == d.fail, d.failing != nil && d.failing(c):
		err, verdict = errDataplane, " failed"
	default:
		do()
	}
	d.calls = append(d.calls, c.String()+verdict)
	return err
}

func (d *strictDataplane) PutTunnel(t Tunnel) error {
	taken := false
	for k, o := range d.tunnels {
		if k != t.TunnelKey {
			taken = taken || overlap(t.claims, o.claims)
		}
	}
	return d.call(Change{Op: PutTunnel, Tunnel: t}, taken, func() { d.tunnels[t.TunnelKey] = t })
}

func (d *strictDataplane) PutService(s Service) error {
	taken := false
	for k, o := range d.services {
		if k != s.ServiceKey {
			taken = taken || overlap(s.claims, o.claims)
		}
	}
	return d.call(Change{Op: PutService, Service: s}, taken, func() { d.services[s.ServiceKey] = s })
}

func (d *strictDataplane) Together(f func()) { f() }

func (d *strictDataplane) DeleteTunnel(k TunnelKey) error {
	return d.call(Change{Op: DeleteTunnel, Tunnel: Tunnel{TunnelKey: k}}, false, func() { delete(d.tunnels, k) })
}

func (d *strictDataplane) DeleteService(k ServiceKey) error {
	return d.call(Change{Op: DeleteService, Service: Service{ServiceKey: k}}, false, func() { delete(d.services, k) })
}

func overlap[C comparable](a, b func(func(C) bool)) bool {
	var of []C
	for c := range a {
		of = append(of, c)
	}
	for c := range b {
		if slices.Contains(of, c) {
			return true
		}
	}
	return false
}

// state is what the dataplane holds, as a State.
func (d *strictDataplane) state() State {
	var s State
	for _, t := range d.tunnels {
		s.Tunnels = append(s.Tunnels, t)
	}
	for _, v := range d.services {
		s.Services = append(s.Services, v)
	}
	slices.SortFunc(s.Tunnels, func(a, b Tunnel) int { return a.TunnelKey.compare(b.TunnelKey) })
	slices.SortFunc(s.Services, func(a, b Service) int { return a.ServiceKey.compare(b.ServiceKey) })
	return s
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// objectOf reads one object of YAML.
func objectOf[T Object](t *testing.T, text string) T {
	t.Helper()
	objs, err := Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return objs[0].(T)
}
