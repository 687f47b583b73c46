package e2ek8s

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bareService has no selector: its one slice is the test's to write.
const bareService = `
apiVersion: v1
kind: Service
metadata: {name: bare}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bare, labels: {kubernetes.io/service-name: bare}}
addressType: IPv4
endpoints:
- {addresses: [%q], conditions: {ready: true}}
- {addresses: [%q], conditions: {ready: false}}
ports: [{name: http, port: 8080, protocol: TCP}]
---`

// Case 64. From the moment the API server is told that one endpoint is ready and the
// other is not until new connections take it, on every node. None fails meanwhile.
func testLatency(t *testing.T, r *rig) {
	ns := r.namespace(t, "latency")
	r.apply(t, ns, deployment("web", 2)+deployment("client", 3))
	web, clients := r.pods(t, ns, "web", 2), r.pods(t, ns, "client", 3)
	r.apply(t, ns, fmt.Sprintf(bareService, ip(t, web[0], 4), ip(t, web[1], 4)))
	at := vip(t, r.service(t, ns, "bare"), 4, "http")
	for _, c := range clients {
		eventually(t, "the first endpoint answers", func() error { return sawOnly(r.inside(t, c), at, web[0].Name) })
	}
	slices4 := r.Client.DiscoveryV1().EndpointSlices(ns)
	var mu sync.Mutex
	var all []time.Duration
	for i := range 30 {
		to := web[(i+1)%2]
		s, err := slices4.Get(t.Context(), "bare", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for j := range s.Endpoints {
			ready := s.Endpoints[j].Addresses[0] == ip(t, to, 4).String()
			s.Endpoints[j].Conditions.Ready = &ready
		}
		began := time.Now()
		if _, err := slices4.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, c := range clients {
			from := r.inside(t, c)
			wg.Go(func() {
				took, err := until(began, func() bool {
					a, err := ask(from, "tcp", at)
					if err != nil {
						t.Errorf("a connection from %s while endpoints change: %v", c.Spec.NodeName, err)
					}
					return err == nil && a.name == to.Name
				})
				mu.Lock()
				defer mu.Unlock()
				if all = append(all, took); err != nil {
					t.Errorf("on %s: %v", c.Spec.NodeName, err)
				}
			})
		}
		wg.Wait()
	}
	slices.Sort(all)
	p50, p99 := all[len(all)/2], all[len(all)*99/100]
	t.Logf("an endpoint written to connections that take it, %d times on each of %d nodes: p50 %v, p99 %v", len(all)/len(clients), len(clients), p50.Round(time.Millisecond), p99.Round(time.Millisecond))
	// A machine shared with others: what the goal is, benchmarks say.
	if p99 > 2*time.Second {
		t.Errorf("p99 is %v, want 2 s at most", p99)
	}
}

// until calls f, again and again, until it holds, and says how long after began that was.
func until(began time.Time, f func() bool) (time.Duration, error) {
	for {
		held := f()
		took := time.Since(began)
		if held {
			return took, nil
		}
		if took > patience {
			return took, fmt.Errorf("not within %v", patience)
		}
		time.Sleep(2 * time.Millisecond) // between two looks at the condition
	}
}
