package control

import (
	"sync/atomic"
	"time"
)

// How long a change takes from where it happened to the dataplane of this node.
// Kubernetes' controllers note on an EndpointSlice when what it follows from changed:
// a pod became ready, a service got another port. That time is kept until the
// dataplane has confirmed all of the service; of several changes that wait for one
// confirmation the oldest counts. What a full list brings is not counted: when it
// changed says nothing of this node.

// Histogram counts durations in buckets whose bounds double. Its methods may be
// called from any goroutine; the zero value is empty.
type Histogram struct {
	counts [histogramBuckets + 1]atomic.Uint64 // the last: above all bounds
	sum    atomic.Int64
}

// The bounds are 1 ms, 2 ms, ... 65.5 s: those that kube-proxy's metric of this kind
// begins and ends with, about.
const (
	histogramFirst   = time.Millisecond
	histogramBuckets = 17
)

// Observe counts d; below zero, as clocks of two machines may have it, is zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	for i < histogramBuckets && d > histogramFirst<<i {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Buckets are how many durations were at most how long, cumulative; the last bucket,
// without a bound, has all.
func (h *Histogram) Buckets() (buckets []Bucket, sum time.Duration) {
	n := uint64(0)
	for i := range h.counts {
		n += h.counts[i].Load()
		b := Bucket{Count: n}
		if i < histogramBuckets {
			b.AtMost = histogramFirst << i
		}
		buckets = append(buckets, b)
	}
	return buckets, time.Duration(h.sum.Load())
}

// Bucket is how many durations were at most AtMost; zero: all.
type Bucket struct {
	AtMost time.Duration
	Count  uint64
}

// noteTrigger keeps when the change happened that a slice reports.
func (o *Objects) noteTrigger(was, is *Slice) {
	if is.triggered == "" || was != nil && was.triggered == is.triggered {
		return
	}
	at, err := time.Parse(time.RFC3339Nano, is.triggered)
	if err != nil {
		return
	}
	service := objectName{is.Namespace, is.service}
	if first, ok := o.triggered[service]; !ok || at.Before(first) {
		o.triggered[service] = at
	}
}

// observe counts the changes of services that the dataplane has by now.
func (c *Controller) observe(rec *Reconciler, triggered map[objectName]time.Time, now time.Time) {
	for service, at := range triggered {
		if first, ok := c.awaited[service]; !ok || at.Before(first) {
			c.awaited[service] = at
		}
	}
	if len(c.awaited) == 0 {
		return
	}
	open := map[objectName]bool{}
	for k := range rec.services.pending {
		open[objectName{k.Namespace, k.Name}] = true
	}
	for service, at := range c.awaited {
		if !open[service] {
			c.latency.Observe(now.Sub(at))
			delete(c.awaited, service)
		}
	}
}

// ProgrammingLatency is how long changes of endpoints took from where they happened
// until the dataplane had them, as far as EndpointSlices tell when that was.
func (c *Controller) ProgrammingLatency() *Histogram { return &c.latency }
