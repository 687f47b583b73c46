package control

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The latency of a change is the time from where it happened until the dataplane
// has it, however often it refuses; a full list and a slice that tells nothing new
// count for nothing.
func TestProgrammingLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t)
		slice := func(addr string, changed time.Time) Object {
			s := objectOf[*discoveryv1.EndpointSlice](t, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: ["`+addr+`"]}]
`)
			s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: changed.Format(time.RFC3339Nano)}
			return s
		}
		began := time.Now()
		c.Reset([]Object{simple(t, "web", "10.96.0.1"), slice("10.244.1.2", began)})
		<-c.Synced()
		counted := func() (n uint64, sum time.Duration) {
			b, sum := c.ProgrammingLatency().Buckets()
			return b[len(b)-1].Count, sum
		}
		if n, _ := counted(); n != 0 {
			t.Fatalf("%d changes counted of a full list, want none", n)
		}
		c.Update([]Object{slice("10.244.1.2", began)}, nil)
		synctest.Wait()
		if n, _ := counted(); n != 0 {
			t.Fatalf("%d changes counted of a slice that was known, want none", n)
		}

		time.Sleep(time.Second)
		c.dp.mu.Lock()
		c.dp.failing = func(Change) bool { return true }
		c.dp.mu.Unlock()
		changed := time.Now()
		c.Update([]Object{slice("10.244.1.3", changed)}, nil)
		synctest.Wait()
		time.Sleep(20 * time.Millisecond)
		c.Update([]Object{slice("10.244.1.4", time.Now())}, nil)
		synctest.Wait()
		if n, _ := counted(); n != 0 {
			t.Fatal("counted before the dataplane took it")
		}
		c.dp.mu.Lock()
		c.dp.failing = nil
		c.dp.mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		n, sum := counted()
		if took := time.Since(changed); n != 1 || sum < 100*time.Millisecond || sum > took {
			t.Errorf("%d changes of %v together, want one of 100 ms (the first wait) to %v", n, sum, took)
		}
	})
}

func TestHistogramsBuckets(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{-time.Second, time.Millisecond, time.Millisecond + 1, 2 * time.Millisecond, time.Hour} {
		h.Observe(d)
	}
	b, sum := h.Buckets()
	if want := time.Hour + 4*time.Millisecond + 1; sum != want {
		t.Errorf("sum %v, want %v", sum, want)
	}
	if b[0] != (Bucket{time.Millisecond, 2}) || b[1] != (Bucket{2 * time.Millisecond, 4}) || b[len(b)-2].Count != 4 || b[len(b)-1] != (Bucket{0, 5}) {
		t.Errorf("buckets %v", b)
	}
}
