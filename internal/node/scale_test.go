package node

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
	"vswitch/control/snapshot"
	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// What a node of a large cluster has to know.
const (
	manyServices     = 10_000
	endpointsOfEach  = 10
	manyNodes        = 1000
	changesInABatch  = 2000 // for a p99 that twenty stand behind
	serviceRange     = "10.96.0.0/16"
	clusterRange     = "10.0.0.0/10"
	changeLimit      = 20 * time.Second // for one change to arrive, or something is broken
	bytesPerMegabyte = 1e6
)

func vipOf(i int) netip.Addr { return control.AddrAt(netip.MustParsePrefix(serviceRange), uint64(i+1)) }

// manyObjects are 10,000 services and the 100,000 endpoints behind them: in slices,
// as a cluster's own controller writes them, or pods that the services select.
func manyObjects(pods bool) []control.Object {
	var all []control.Object
	for i := range manyServices {
		name := fmt.Sprintf("s%d", i)
		vip := vipOf(i).String()
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
		s.Spec.ClusterIP, s.Spec.ClusterIPs = vip, []string{vip}
		s.Spec.Ports = []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}
		if pods {
			s.Spec.Selector = map[string]string{"app": name, "tier": "all"}
			for e := range endpointsOfEach {
				n := i*endpointsOfEach + e
				all = append(all, control.NewPod(control.PodInfo{
					Node: nodeName(n), Namespace: "default", Name: fmt.Sprintf("%s-%d", name, e),
					UID: fmt.Sprintf("uid-%d", n), ContainerID: fmt.Sprintf("container-%d", n), Interface: "eth0",
					Labels: map[string]string{"app": name, "tier": "all"}, Addrs: []netip.Addr{podAddr(n)},
				}))
			}
		} else {
			all = append(all, sliceOf(i, 0))
		}
		all = append(all, s)
	}
	return all
}

func nodeName(n int) string { return fmt.Sprintf("node-%d", n%manyNodes) }

func podAddr(n int) netip.Addr {
	return control.AddrAt(netip.MustParsePrefix(clusterRange), uint64(n+2))
}

// sliceOf is the slice of service i; another round, another first endpoint.
func sliceOf(i, round int) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("s%d", i)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
	}
	for e := range endpointsOfEach {
		n := i*endpointsOfEach + e
		if e == 0 {
			n += round * manyServices * endpointsOfEach
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{podAddr(n).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   new(nodeName(n)),
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("p%d", n), UID: types.UID(fmt.Sprint(n))},
		})
	}
	return s
}

// cluster is a controller with the node's dataplane and gateway behind it.
type cluster struct {
	*control.Controller
	gateway *gateway.Gateway
	put     chan control.ServiceKey // services that the dataplane has been given
	watched bool
}

// tellingDataplane says when a service is put.
type tellingDataplane struct {
	*dataplane
	c *cluster
}

// PutService implements control.Dataplane.
func (d tellingDataplane) PutService(s control.Service) error {
	err := d.dataplane.PutService(s)
	if d.c.watched {
		d.c.put <- s.ServiceKey
	}
	return err
}

func startCluster(b *testing.B, keep control.LastGood) *cluster {
	flows, err := flow.New(flow.Config{Connections: 64})
	if err != nil {
		b.Fatal(err)
	}
	f := fib.New()
	dp := newDataplane("node-0", nil, f, flows, &peers{})
	dp.serviceCIDRs = []netip.Prefix{netip.MustParsePrefix(serviceRange)}
	g, err := gateway.New(gateway.Config{
		Queues: 1, MTUBytes: 1450, MAC: vswitch.GatewayMAC, Routers: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Cluster: []netip.Prefix{netip.MustParsePrefix(clusterRange)}, Service: []netip.Prefix{netip.MustParsePrefix(serviceRange)},
		IsLocalPod: dp.isLocalPod, IsNode: dp.isNode, NoNodePorts: true, EndpointGone: dp.endpointGone, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	dp.serve(g, &facts{}, vswitch.Facts{})
	c := &cluster{gateway: g, put: make(chan control.ServiceKey, 1)}
	c.Controller = control.NewController(control.ControllerConfig{
		Self:      control.Self{Node: "node-0", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix(serviceRange)}},
		Dataplane: tellingDataplane{dp, c}, LastGood: keep, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	b.Cleanup(func() {
		c.watched = false
		cancel()
		<-done
		g.Close()
		flows.Close()
	})
	return c
}

// telling tells when all objects are saved.
type telling struct {
	control.LastGood
	saved chan<- struct{}
}

func (t telling) Replace(objs iter.Seq[control.Object]) error {
	defer func() { t.saved <- struct{}{} }()
	return t.LastGood.Replace(objs)
}

// load gives the controller everything and waits until it is programmed.
func (c *cluster) load(b *testing.B, all []control.Object) {
	c.Reset(all)
	<-c.Synced()
	for _, i := range []int{0, manyServices - 1} {
		if _, why := c.gateway.Pick(keyTo(vipOf(i)), &wire.Headers{}); why != drop.None {
			b.Fatalf("service %d: %v", i, why)
		}
	}
}

func keyTo(vip netip.Addr) *flow.Key {
	return &flow.Key{Src: wire.AddrFrom(netip.MustParseAddr("10.0.0.9")), SrcPort: 40000, Dst: wire.AddrFrom(vip), DstPort: 80, Proto: wire.ProtoTCP}
}

// BenchmarkLoadServices is what a node takes to know 10,000 services with 100,000
// endpoints from a full list, control and gateway together: the time until they are
// programmed, and the memory that stays once they are saved too, objects included.
func BenchmarkLoadServices(b *testing.B) {
	for _, behind := range []string{"slices", "pods"} {
		b.Run(behind, func(b *testing.B) {
			var took time.Duration
			var bytes uint64
			for b.Loop() {
				before := heap()
				all := manyObjects(behind == "pods")
				saved := make(chan struct{}, 1)
				c := startCluster(b, telling{snapshot.At(filepath.Join(b.TempDir(), "snapshot")), saved})
				began := time.Now()
				c.load(b, all)
				took += time.Since(began)
				<-saved
				all = nil
				bytes += heap() - before
				runtime.KeepAlive(c)
			}
			b.ReportMetric(took.Seconds()/float64(b.N), "s/load")
			b.ReportMetric(float64(bytes)/float64(b.N)/bytesPerMegabyte, "MB")
		})
	}
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // finalizers, and what they held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkEndpointChange is the time from an event of the store, one endpoint of
// one of 10,000 services replaced, to the gateway's giving new flows the new one,
// while the last good objects are saved as a node saves them.
func BenchmarkEndpointChange(b *testing.B) {
	c := startCluster(b, snapshot.At(filepath.Join(b.TempDir(), "snapshot")))
	c.load(b, manyObjects(false))
	c.watched = true
	var all []time.Duration
	var version [manyServices]int
	round := 0
	for b.Loop() {
		for i := range changesInABatch {
			n := (i*7919 + round) % manyServices // all over the place
			version[n]++
			change := sliceOf(n, version[n]%2)
			began := time.Now()
			c.Update([]control.Object{change}, nil)
			select {
			case <-c.put:
			case <-time.After(changeLimit):
				b.Fatal("the change never came")
			}
			all = append(all, time.Since(began))
		}
		round++
	}
	slices.Sort(all)
	at := func(p int) float64 { return float64(all[len(all)*p/100].Nanoseconds()) / 1e3 }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(at(50), "p50-us")
	b.ReportMetric(at(99), "p99-us")
	b.ReportMetric(float64(all[len(all)-1].Nanoseconds())/1e3, "max-us")
}
